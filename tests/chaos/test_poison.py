"""Poison through the real pools: an item that crashes, hangs or bloats what handles it fails alone, with a reason."""

import base64
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from sqlalchemy import select

from deploy.local.process import Process
from deploy.local.supervisor import Backoff, Supervisor
from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.models import Job, Shard
from shared.jobs.states import ENDED_JOBS
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import item_errors, submit, wait_for
from tests.chaos.conftest import MODALITIES
from tests.chaos.poison import HARM, WORKER_MARK


@contextmanager
def workers(environment: dict[str, str], folder: Path, root: Path, *pools: str) -> Iterator[Supervisor]:
    """Supervised workers, which are started again when they die."""
    variables = {**os.environ, **environment, "PYTHONPATH": str(root)}
    with ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(Backoff(initial=0.1, factor=1.0)))
        for pool in pools:
            command = [sys.executable, "-m", "tests.chaos.poison", f"services.{pool}"]
            process = Process(pool, command, log=folder / f"{pool}.log", env=variables, cwd=root, grace=30)
            supervisor.add(process).spawn()
        yield supervisor


def wait_for_end(sessions: Sessions, job_id: str, seconds: float) -> Job:
    """The job's row once it has ended, with a sweep now and then."""

    def ended() -> Job | None:
        with sessions.begin() as session:
            engine.reclaim_expired(session)
        with sessions() as session:
            job = session.get_one(Job, job_id)
            return job if job.status in ENDED_JOBS else None

    return wait_for(ended, seconds=seconds, what=f"the end of {job_id}")


def picture(seed: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


def sound(seed: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(seed).uniform(-1, 1, 1600), 16_000, format="WAV")
    return target.getvalue()


def features(encoder: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A request of one modality, all items in one shard."""
    return {"items": items, "encoders": {m: f"hash-{m}" if m == encoder else None for m in MODALITIES}}


@pytest.mark.parametrize("pool", ["image", "audio"])
def test_what_harms_its_decoder_fails_alone(
    pool: str, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore,
    tmp_path: Path, root: Path,
) -> None:  # fmt: skip
    """A crash, a hang, all the memory, an exit: each item has its code, and the rest of the shard succeeds."""
    make = picture if pool == "image" else sound
    kind = "image/png" if pool == "image" else "audio/wav"
    harmful = {f"bad-{i}": make(100 + i) + mark for i, mark in enumerate(HARM)}
    contents = {**{f"good-{i}": make(i) for i in range(6)}, **harmful, "last": make(7)}
    items = [
        {"id": id, pool: f"data:{kind};base64," + base64.b64encode(data).decode()} for id, data in contents.items()
    ]
    with workers(environment, tmp_path, root, pool, "fusion"):
        id = submit(settings, sessions, store, features(pool, items))
        job = wait_for_end(sessions, id, 90)
    codes = {error.item_id: error.code for error in item_errors(sessions, id) if error.modality == pool}
    assert codes == dict(zip(harmful, (code for _, code in HARM.values()), strict=True))
    assert (job.status, job.items_succeeded, job.items_failed) == (JobStatus.SUCCEEDED, 7, len(harmful))
    with sessions() as session:
        shard = session.scalars(select(Shard).where(Shard.job_id == id, Shard.stage == pool)).one()
    assert (shard.attempts, shard.isolated) == (1, False)
    assert oracle.wrong_counters(sessions) == oracle.missing_objects(sessions, store) == []


def test_what_kills_its_worker_is_found_item_by_item(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore, tmp_path: Path, root: Path
) -> None:
    """Two items of a shard kill their worker each time: they are given up after two deaths each, the rest succeeds."""
    texts = {f"item-{i}": f"text {i}{WORKER_MARK if i in {3, 8} else ''}" for i in range(12)}
    with workers(environment, tmp_path, root, "text", "fusion"):
        id = submit(settings, sessions, store, features("text", [{"id": k, "text": v} for k, v in texts.items()]))
        began = time.monotonic()
        job = wait_for_end(sessions, id, 240)
    print(f"two items that kill their worker: {time.monotonic() - began:.0f} s")
    codes = {error.item_id: error.code for error in item_errors(sessions, id) if error.modality == "text"}
    assert codes == {"item-3": "item_crashed_worker", "item-8": "item_crashed_worker"}
    assert (job.status, job.items_succeeded, job.items_failed) == (JobStatus.SUCCEEDED, 10, 2)
    with sessions() as session:
        shard = session.scalars(select(Shard).where(Shard.job_id == id, Shard.stage == "text")).one()
    assert shard.strikes == {"3": 2, "8": 2}
    assert shard.attempts == 2
    assert oracle.wrong_counters(sessions) == []
