"""SIGTERM to workers at work, the slow part: pools with models, a long fit, and servers that are away meanwhile."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete

from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.models import Job, Worker
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit, wait_for
from shared.worker.run import LEAVE_SECONDS
from tests.chaos.proxy import Proxy
from tests.integration.drains import (
    check_nothing_lost,
    extraction_job,
    fusion_job,
    service,
    settings_of_workers,
    shards,
    some_done,
    terminate,
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


@pytest.mark.parametrize("pool", ["text", "image", "audio"])
def test_a_drained_worker_finishes_what_runs_and_hands_the_rest_back(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore, pool: str
) -> None:
    id = extraction_job(settings, sessions, store, pool)
    with service(root, environment, pool) as worker:
        some_done(sessions, id, pool)
        assert terminate(worker, LEAVE_SECONDS) < LEAVE_SECONDS
    check_nothing_lost(sessions, store, id, pool)
    assert {shard.state for shard in shards(sessions, id, pool)} == {"ready", "done"}


def test_a_long_fit_is_handed_back_in_time(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    random = np.random.default_rng(0)
    words = [f"word{i}" for i in range(20_000)]
    items = [{"id": f"item-{i}", "text": " ".join(random.choice(words, 5000))} for i in range(300)]
    encoders = {"text": "fitted", "image": None, "audio": None}
    id = submit(settings, sessions, store, {"items": items, "encoders": encoders, "shard_size": 50})
    with service(root, environment, "text", TRIVIUM_DRAIN_SECONDS="1") as worker:
        wait_for(lambda: shards(sessions, id, "fit")[0].started_at, what="the beginning of the fit")
        terminate(worker, 1 + LEAVE_SECONDS)
    check_nothing_lost(sessions, store, id, "fit")
    assert [shard.state for shard in shards(sessions, id, "fit")] == ["ready"]


@pytest.mark.parametrize("how", ["close", "silence"])
@pytest.mark.parametrize("server", ["postgres", "s3", "redis"])
def test_a_drain_ends_in_time_while_a_server_is_away(
    root: Path, environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch, server: str, how: str,
) -> None:  # fmt: skip
    """Refused, or half-open: whatever is asked of the server, nobody waits for its answer longer than is promised."""
    monkeypatch.setattr(engine, "RESTART_GRACE", engine.RESTART_GRACE * 0)
    id = fusion_job(settings, sessions, store)
    name = {"postgres": "TRIVIUM_DATABASE_URL", "s3": "TRIVIUM_S3_ENDPOINT", "redis": "TRIVIUM_REDIS_URL"}[server]
    port = int(re.findall(r":(\d+)", environment[name])[-1])
    with Proxy(port) as proxy:
        through = {name: environment[name].replace(f":{port}", f":{proxy.port}"), "TRIVIUM_DRAIN_SECONDS": "1"}
        with service(root, environment, "fusion", **through) as worker:
            some_done(sessions, id, "fusion")
            getattr(proxy, how)()
            terminate(worker, 1 + LEAVE_SECONDS)

    def all_free() -> bool:
        with sessions.begin() as session:
            engine.reclaim_expired(session)
        return {shard.state for shard in shards(sessions, id, "fusion")} == {"ready", "done"}

    wait_for(all_free, what="the end of the leases")
    assert oracle.wrong_counters(sessions) == []
    assert oracle.missing_objects(sessions, store) == []
