"""SIGTERM to workers at work: a shard is finished or handed back with its attempt, and they leave with 0, in time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from deploy.local.ports import free_port
from shared.db import Sessions
from shared.jobs.models import Job, Worker
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.worker.run import LEAVE_SECONDS
from tests.integration.drains import (
    PATIENCE,
    check_nothing_lost,
    extraction_job,
    fusion_job,
    process,
    service,
    settings_of_workers,
    shards,
    some_done,
    terminate,
    unplanned_job,
)


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With deterministic, slow encoders."""
    return {**environment, **settings_of_workers(tmp_path_factory.mktemp("drain"))}


@pytest.fixture(autouse=True)
def _empty(sessions: Sessions) -> Iterator[None]:
    yield
    with sessions.begin() as session:
        for table in (Job, Worker):
            session.execute(delete(table))


def test_a_drained_worker_finishes_what_runs_and_hands_the_rest_back(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    id = fusion_job(settings, sessions, store)
    with service(root, environment, "fusion") as worker:
        some_done(sessions, id, "fusion")
        assert terminate(worker, LEAVE_SECONDS) < LEAVE_SECONDS
    check_nothing_lost(sessions, store, id, "fusion")
    assert {shard.state for shard in shards(sessions, id, "fusion")} == {"ready", "done"}


@pytest.mark.parametrize(("seconds", "state"), [("60", "done"), ("0", "ready")])
def test_a_drained_dispatcher_finishes_a_plan_or_hands_it_back(
    root: Path, environment: dict[str, str], sessions: Sessions, store: ObjectStore, seconds: str, state: str
) -> None:
    id = unplanned_job(sessions, store, 60_000)
    with service(root, environment, "dispatcher", TRIVIUM_DRAIN_SECONDS=seconds) as worker:
        wait_for(lambda: any(store.list(f"jobs/{id}/plan/")), what="the first slice")
        terminate(worker, float(seconds) + LEAVE_SECONDS)
    check_nothing_lost(sessions, store, id, "plan")
    assert [shard.state for shard in shards(sessions, id, "plan")] == [state]
    assert len(shards(sessions, id, "text")) == (60_000 // 256 + 1 if state == "done" else 0)


@contextmanager
def hanging(
    root: Path, environment: dict[str, str], folder: Path, step: str, **more: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker that hangs in a step of its work, and does so now."""
    mark = folder / "hanging"
    with process(root, environment, "tests.integration.hanging", step, HANGING=str(mark), **more) as worker:
        wait_for(mark.exists, what=f"hanging in {step}")
        yield worker


@pytest.mark.parametrize(("step", "drain"), [("load", 60), ("prepare", 60), ("run", 1), ("store", 1)])
def test_what_hangs_is_handed_back_and_not_waited_for(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore,
    tmp_path: Path, step: str, drain: int,
) -> None:  # fmt: skip
    """What the model has begun gets the drain's time; what is only being loaded or prepared for it does not."""
    id = extraction_job(settings, sessions, store, "text")
    with hanging(root, environment, tmp_path, step, TRIVIUM_DRAIN_SECONDS=str(drain)) as worker:
        terminate(worker, LEAVE_SECONDS + (1 if drain == 1 else 0))
    check_nothing_lost(sessions, store, id, "text")


def test_a_second_signal_leaves_at_once(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore, tmp_path: Path
) -> None:
    id = extraction_job(settings, sessions, store, "text")
    with hanging(root, environment, tmp_path, "run", TRIVIUM_DRAIN_SECONDS="600") as worker:
        worker.send_signal(signal.SIGTERM)

        def draining() -> bool:
            with sessions() as session:
                return session.scalars(select(Worker.state)).all() == ["draining"]

        wait_for(draining, what="the drain")
        terminate(worker, 1)
    check_nothing_lost(sessions, store, id, "text")


def test_a_start_is_broken_off(root: Path, environment: dict[str, str], tmp_path: Path) -> None:
    with hanging(root, environment, tmp_path, "start") as worker:
        terminate(worker, 1)


def test_a_start_that_waits_for_postgres_is_broken_off(root: Path, environment: dict[str, str]) -> None:
    away = f"postgresql+psycopg://u:p@127.0.0.1:{free_port()}/x"
    variables = {**os.environ, **environment, "TRIVIUM_DATABASE_URL": away, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "services.fusion"]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            assert "waits for Postgres" in worker.stderr.readline()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        finally:
            worker.kill()
