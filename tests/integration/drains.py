"""Workers as processes that are told to stop while they work: what tests of the drain have in common."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from sqlalchemy import select

from shared.db import Sessions
from shared.ids import new_id
from shared.jobs import engine, repository
from shared.jobs.models import Event, Shard, Worker
from shared.jobs.records import Finished, Lease
from shared.jobs.repository import NewJob
from shared.queues import Queue
from shared.schemas import FeaturesRequest
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit, wait_for
from shared.worker.slices import pack

DIMENSION = 16
#: What a busy machine needs beyond what is promised.
PATIENCE = 10.0
HASHING = {"text": "hash-text", "image": "hash-image", "audio": "hash-audio"}


def settings_of_workers(folder: Path) -> dict[str, str]:
    """The deterministic encoders, made slow, and an encoder to fit; no cache, and short leases."""
    encoders: list[dict[str, Any]] = [
        {"id": id, "modality": modality, "dimension": DIMENSION, "loader": "hashing"}
        for modality, id in HASHING.items()
    ]
    encoders.append({"id": "fitted", "modality": "text", "dimension": 64, "loader": "word2vec", "fitted": True})
    (folder / "encoders.json").write_text(json.dumps(encoders))
    return {
        "TRIVIUM_ENCODERS_FILE": str(folder / "encoders.json"),
        "TRIVIUM_CACHE_BYTES": "0",
        "TRIVIUM_LEASE_SECONDS": "5",
        "TRIVIUM_RENEW_SECONDS": "0.5",
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "CHAOS_POINTS": str(folder),
        "CHAOS_MODEL_SECONDS": "0.2",
    }


@contextmanager
def process(root: Path, environment: dict[str, str], *module: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process; none is left at the end."""
    variables = {**os.environ, **environment, **more, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-m", *module], env=variables, cwd=root) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def service(root: Path, environment: dict[str, str], name: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker of a service, whose models are slow."""
    with process(root, environment, "tests.chaos.points", f"services.{name}", **more) as started:
        yield started


def terminate(worker: "subprocess.Popen[bytes]", seconds: float) -> float:
    """SIGTERM; the worker has to leave with 0 within so many seconds. Returns how long it took."""
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(seconds + PATIENCE) == 0
    return time.monotonic() - began


def shards(sessions: Sessions, job: str, stage: str) -> list[Shard]:
    with sessions() as session:
        found = select(Shard).where(Shard.job_id == job, Shard.stage == stage).order_by(Shard.index)
        return list(session.scalars(found))


def some_done(sessions: Sessions, job: str, stage: str) -> None:
    """Waits until a shard is done and another one is in work."""

    def busy() -> bool:
        found = shards(sessions, job, stage)
        return any(s.state == "done" for s in found) and any(s.started_at and s.state == "leased" for s in found)

    wait_for(busy, what="a shard in work")


def check_nothing_lost(sessions: Sessions, store: ObjectStore, job: str, stage: str) -> None:
    """Each shard is done or can be claimed as if nobody had tried it; nobody counts as dead."""

    def settled() -> bool:
        leased = select(Shard.id).where(Shard.state == "leased")
        with sessions() as session:
            return session.scalars(leased).all() == session.scalars(select(Worker.id)).all() == []

    wait_for(settled, seconds=PATIENCE, what="the keeper's last words")
    found = shards(sessions, job, stage)
    assert {shard.state for shard in found} <= {"ready", "done"}
    assert [(s.attempts, s.isolated, s.early_deaths) for s in found] == [(s.state == "done", False, 0) for s in found]
    assert oracle.wrong_counters(sessions) == []
    assert oracle.missing_objects(sessions, store) == []
    with sessions() as session:
        assert session.scalars(select(Event.type).where(Event.type.in_(["shard.retried", "shard.rescued"]))).all() == []


def media(modality: str, seed: int) -> bytes:
    random, target = np.random.default_rng(seed), io.BytesIO()
    if modality == "image":
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(target, "PNG")
    else:
        soundfile.write(target, random.uniform(-0.5, 0.5, 400).astype(np.float32), 16_000, format="WAV")
    return target.getvalue()


def extraction_job(settings: Settings, sessions: Sessions, store: ObjectStore, modality: str, count: int = 60) -> str:
    """A job over items of one modality, two to a shard."""
    encoders = {name: id if name == modality else None for name, id in HASHING.items()}
    items: list[dict[str, Any]] = [{"id": f"item-{i}", "text": f"words {i}"} for i in range(count)]
    if modality != "text":
        kind = {"image": "image/png", "audio": "audio/wav"}[modality]
        data = [base64.b64encode(media(modality, i)).decode() for i in range(count)]
        items = [{"id": f"item-{i}", modality: f"data:{kind};base64,{data[i]}"} for i in range(count)]
    return submit(settings, sessions, store, {"items": items, "encoders": encoders, "shard_size": 2})


def fusion_job(settings: Settings, sessions: Sessions, store: ObjectStore) -> str:
    """A job of which nothing is left but fusion: what the text pool would have made is there."""
    id = extraction_job(settings, sessions, store, "text", 300)
    while leases := claim_text(sessions):
        results = []
        for lease in leases:
            first = lease.index * 2
            arrays = {"index": np.array([first, first + 1]), "vectors": np.zeros((2, DIMENSION), np.float32)}
            key = keys.shard_result(lease.job_id, lease.stage, lease.index, lease.token)
            results.append(Finished(lease, store.put(key, pack(arrays, {})), items_done=2, rows=2))
        with sessions.begin() as session:
            engine.finish(session, results)
    return id


def claim_text(sessions: Sessions) -> list[Lease]:
    with sessions.begin() as session:
        return engine.claim(session, Queue.TEXT, "test", limit=100)


def unplanned_job(sessions: Sessions, store: ObjectStore, count: int) -> str:
    """A job whose items the dispatcher has to plan."""
    id = new_id("job")
    store.put(keys.inline_items(id), b"".join(b'{"id": "item-%d", "text": "words"}\n' % i for i in range(count)))
    request = FeaturesRequest.model_validate({"items": [{"id": "any", "text": "any"}], "encoders": {"image": None}})
    with sessions.begin() as session:
        job = repository.create(session, NewJob(id, "default", request.model_dump(mode="json", exclude={"items"}), id))
        assert job is not None
        repository.queue_plan(session, job)
    return id
