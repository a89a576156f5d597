"""A training that is killed right after it left a checkpoint: what was learned until then is not learned again."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from deploy.local.process import Process
from deploy.local.supervisor import Backoff, Supervisor
from services.fusion import tasks as fusion
from services.text import tasks as text
from shared.db import Sessions
from shared.jobs import outputs
from shared.jobs.models import Model, Shard
from shared.queues import Queue
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit
from shared.testing.workers import make_context, run_pool
from tests.chaos.content import sentence
from tests.chaos.points import file_of
from tests.chaos.test_poison import wait_for_end

POINT = "after commit of a checkpoint"


@contextmanager
def trainer(environment: dict[str, str], folder: Path, root: Path) -> Iterator[None]:
    """A worker of the finetune pool with crash points, started again when it dies."""
    variables = {
        **os.environ, **environment, "PYTHONPATH": str(root), "CHAOS_POINTS": str(folder),
        "CHAOS_EPOCH_SECONDS": "0.4", "TRIVIUM_TORCH_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.chaos.points", "services.finetune"]
    with Supervisor(Backoff(initial=0.1, factor=1.0)) as supervisor:
        process = Process("finetune", command, log=folder / "finetune.log", env=variables, cwd=root, grace=30)
        supervisor.add(process).spawn()
        yield


def request() -> dict[str, Any]:
    """A classifier of texts, one network of six epochs."""
    random = np.random.default_rng(0)
    items = [{"id": f"item-{i}", "text": sentence(random), "label": "ab"[i % 2]} for i in range(40)]
    return {
        "type": "fine_tune", "items": items, "preset": "fast", "training": {"epochs": 6, "patience": 6, "hidden": 8},
        "encoders": {"text": "hash-text", "image": None, "audio": None},
    }  # fmt: skip


def weights_of(sessions: Sessions, job_id: str) -> list[str]:
    """sha256 of what a job trained."""
    with sessions() as session:
        return list(session.scalars(select(Model.fingerprint).where(Model.job_id == job_id)))


def test_a_killed_training_goes_on_from_its_checkpoint(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore,
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The next worker begins with a later epoch, and comes to the weights of a run that nobody disturbed."""
    monkeypatch.setenv("PYTHONPATH", str(root))  # for the decode processes
    with ExitStack() as running:
        for queue, make_pool in ((Queue.TEXT, text.make_pool), (Queue.FUSION, fusion.make_pool)):
            running.enter_context(run_pool(make_context(settings, sessions, store, queue), make_pool))
        running.enter_context(trainer(environment, tmp_path, root))
        calm = submit(settings, sessions, store, request())
        assert wait_for_end(sessions, calm, 120).status == JobStatus.SUCCEEDED
        file_of(tmp_path, POINT, "finetune").touch()
        killed = submit(settings, sessions, store, request())
        assert wait_for_end(sessions, killed, 120).status == JobStatus.SUCCEEDED
    with sessions() as session:
        types = [(event.type, event.data) for event in outputs.events(session, killed)]
        [shard] = session.scalars(select(Shard).where(Shard.job_id == killed, Shard.stage == "fine_tune"))
    rescued = [type for type, _ in types].index("shard.rescued")
    epochs = [data["epoch"] for type, data in types[rescued:] if type == "training.epoch"]
    assert epochs[0] > 1
    assert (shard.attempts, shard.early_deaths) == (1, 0)
    assert len(weights_of(sessions, killed)) == 1
    assert weights_of(sessions, killed) == weights_of(sessions, calm)
    assert oracle.wrong_counters(sessions) == oracle.missing_objects(sessions, store) == []
