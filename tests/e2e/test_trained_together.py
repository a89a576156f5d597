"""An encoder that a text worker trains in two processes: as a job, with one of them killed, the worker killed, the job
cancelled."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import services.finetune.tasks
import services.fusion.tasks
from shared.db import Sessions
from shared.jobs import engine, outputs, repository
from shared.jobs.models import Job, Model, Shard
from shared.queues import Queue
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit, wait_for, wait_for_end
from shared.testing.pools import work_off
from shared.testing.ranks import is_alive, ranks_of
from shared.testing.tiny import tiny_bert, word_order
from shared.testing.workers import make_context

EPOCHS = 12


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two training processes, short leases, a checkpoint after each batch, and a tiny encoder."""
    folder = tmp_path_factory.mktemp("bert")
    file = tmp_path_factory.mktemp("catalogue") / "encoders.json"
    file.write_text(json.dumps([tiny_bert(folder).model_dump(mode="json")]))
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_TRAINING_PROCESSES": "2",
        "TRIVIUM_CHECKPOINT_SECONDS": "0",
        "TRIVIUM_LEASE_SECONDS": "5",
        "TRIVIUM_RENEW_SECONDS": "0.5",
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_DECODE_PROCESSES": "1",
        "TRIVIUM_TORCH_THREADS": "2",
        "TRIVIUM_DEVICE": "cpu",
        "TRIVIUM_PRECISION": "fp32",
    }


class TextWorker:
    """`python -m services.text`; one that was killed is started anew when it is wanted again."""

    def __init__(self, root: Path, environment: dict[str, str]):
        self._root, self._environment = root, environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            variables = {**os.environ, **self._environment, "PYTHONPATH": str(self._root)}
            command = [sys.executable, "-m", "services.text"]
            self._process = subprocess.Popen(command, env=variables, cwd=self._root)
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def worker(root: Path, environment: dict[str, str]) -> Iterator[TextWorker]:
    started = TextWorker(root, environment)
    yield started
    started.kill()


def train(settings: Settings, sessions: Sessions, store: ObjectStore, epochs: int = EPOCHS) -> str:
    """A job that trains a classifier and its encoder, which never stops early."""
    parts = ("train", "train", "train", "train", "validation", "test")
    items = [
        {"id": f"t{i}", "text": text, "label": label, "split": parts[i % 6]}
        for i, (text, label) in enumerate(word_order(60, 0))
    ]
    return submit(settings, sessions, store, {
        "type": "fine_tune", "items": items, "encoders": {"text": "tiny-bert", "image": None, "audio": None},
        "train_encoder": "lora", "preset": "fast", "training": {"epochs": 3},
        "encoder_training": {"epochs": epochs, "patience": epochs, "batch_size": 16, "learning_rate": 1e-2},
    })  # fmt: skip


def fit_of(sessions: Sessions, job: str) -> Shard:
    with sessions() as session:
        return session.scalars(select(Shard).where(Shard.job_id == job, Shard.stage == "fit")).one()


def told(sessions: Sessions, job: str, *kinds: str) -> list[dict[str, Any]]:
    """What events of these types say, in order."""
    with sessions() as session:
        return [event.data for event in outputs.events(session, job) if event.type in kinds]


def caught_training(sessions: Sessions, worker: TextWorker, job: str) -> list[int]:
    """The processes of a job, once its first epoch is over."""
    wait_for(lambda: told(sessions, job, "training.epoch"), seconds=240, what="the first epoch")
    ranks = ranks_of(worker.pid)
    assert len(ranks) == 2
    return ranks


def encoded(sessions: Sessions, store: ObjectStore, job: str) -> Model:
    """The encoder of a job, all of whose texts have been encoded with it; no other process is left."""

    def done() -> bool:
        with sessions.begin() as session:
            engine.reclaim_expired(session)
            states = session.execute(select(Shard.stage, Shard.state).where(Shard.job_id == job)).all()
        return all(state == "done" for stage, state in states if stage in ("fit", "text"))

    wait_for(done, seconds=240, what="an encoder")
    assert oracle.wrong_counters(sessions) == oracle.missing_objects(sessions, store) == []
    with sessions() as session:
        return session.scalars(select(Model).where(Model.job_id == job)).one()


@pytest.fixture(scope="module")
def calm(settings: Settings, sessions: Sessions, store: ObjectStore, worker: TextWorker) -> tuple[str, Model]:
    """A job that nobody disturbed, as far as the text worker does it, and its encoder."""
    assert worker.pid
    job = train(settings, sessions, store)
    return job, encoded(sessions, store, job)


def test_a_job_succeeds(
    settings: Settings, sessions: Sessions, store: ObjectStore, worker: TextWorker, calm: tuple[str, Model]
) -> None:
    """With an encoder of two processes, which are gone then."""
    job, encoder = calm
    facts = json.loads(store.get(encoder.spec["files"]["training.json"]["key"]))
    assert (facts["processes"], len(facts["history"])) == (2, EPOCHS)
    assert ranks_of(worker.pid) == []
    pools = {
        queue: make_pool(make_context(settings, sessions, store, queue)).handlers
        for queue, make_pool in (
            (Queue.FUSION, services.fusion.tasks.make_pool),
            (Queue.FINE_TUNE, services.finetune.tasks.make_pool),
        )
    }
    work_off(sessions, pools)
    assert wait_for_end(sessions, job).status == JobStatus.SUCCEEDED


def test_a_killed_process_costs_an_attempt_and_nothing_else(
    settings: Settings, sessions: Sessions, store: ObjectStore, worker: TextWorker, calm: tuple[str, Model]
) -> None:
    """The other one ends, too; the next attempt goes on, to the same weights."""
    assert worker.pid
    job = train(settings, sessions, store)
    ranks = caught_training(sessions, worker, job)
    os.kill(ranks[1], signal.SIGKILL)
    [retried] = wait_for(lambda: told(sessions, job, "shard.retried"), what="the end of the attempt")
    assert retried["code"] == "training_process_failed"
    assert not any(map(is_alive, ranks))
    assert encoded(sessions, store, job).fingerprint == calm[1].fingerprint
    check_went_on(sessions, job, "shard.retried")


def test_a_killed_worker_takes_its_processes_along(
    settings: Settings, sessions: Sessions, store: ObjectStore, worker: TextWorker, calm: tuple[str, Model]
) -> None:
    """kill -9 leaves no orphans; once the lease has run out, another worker goes on, to the same weights."""
    assert worker.pid
    job = train(settings, sessions, store)
    ranks = caught_training(sessions, worker, job)
    worker.kill()
    wait_for(lambda: not any(map(is_alive, ranks)), seconds=10, what="the end of the processes")
    assert fit_of(sessions, job).state == "leased"
    assert worker.pid
    assert encoded(sessions, store, job).fingerprint == calm[1].fingerprint
    check_went_on(sessions, job, "shard.rescued")


def check_went_on(sessions: Sessions, job: str, event: str) -> None:
    """After this event training did not begin anew."""
    with sessions() as session:
        told = [(each.type, each.data) for each in outputs.events(session, job)]
    broken_off = [kind for kind, _ in told].index(event)
    epochs = [data["epoch"] for kind, data in told[broken_off:] if kind == "training.epoch" and "encoder" in data]
    assert epochs[0] > 1


def test_a_cancelled_job_ends_within_a_batch(
    settings: Settings, sessions: Sessions, store: ObjectStore, worker: TextWorker
) -> None:
    """Which would have gone on for minutes; its processes end, the worker does not."""
    pid = worker.pid
    job = train(settings, sessions, store, epochs=1000)
    ranks = caught_training(sessions, worker, job)
    with sessions.begin() as session:
        repository.cancel(session, "default", job)
    asked = time.monotonic()
    assert wait_for_end(sessions, job).status == JobStatus.CANCELLED
    assert time.monotonic() - asked < 10
    assert not any(map(is_alive, ranks))
    assert ranks_of(pid) == []
    assert fit_of(sessions, job).state == "cancelled"
    with sessions() as session:
        assert session.scalars(select(Model).where(Model.job_id == job)).all() == []
        assert session.get_one(Job, job).shards_open == 0
    assert worker.pid == pid
