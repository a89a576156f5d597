"""The oracle, and the chaos suite's judges, find what is wrong: each fault is made on purpose, in rows and objects."""

import hashlib
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from sqlalchemy import func, update

from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.models import Job, JobStage, Shard
from shared.jobs.records import Finished, StoredObject
from shared.queues import Queue, Stage
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit
from tests.chaos import verdict
from tests.chaos.kinds import Kind
from tests.chaos.watch import Held, Watch
from tests.chaos.workload import Outcome, Run

QUEUES = (Queue.TEXT, Queue.FUSION)
REQUEST = {"items": [{"id": f"item-{i}", "text": "words"} for i in range(6)], "shard_size": 3}


@pytest.fixture
def job(settings: Settings, sessions: Sessions, store: ObjectStore) -> str:
    """A job that was worked off as workers do it, with objects in the bucket."""
    id = submit(settings, sessions, store, REQUEST)
    for queue in QUEUES:
        with sessions.begin() as session:
            leases = engine.claim(session, queue, "worker", limit=10)
            for lease in leases:
                engine.start(session, lease)
                data = f"{lease.stage} {lease.index}".encode()
                store.put(key := f"jobs/{id}/{lease.stage}/{lease.index}-{lease.token.hex}", data, "text/plain")
                stored = StoredObject(key, hashlib.sha256(data).hexdigest(), len(data))
                succeeded = lease.items if lease.stage is Stage.FUSION else 0
                engine.finish(session, [Finished(lease, stored, items_done=lease.items, succeeded=succeeded)])
    return id


def findings(sessions: Sessions, store: ObjectStore, id: str) -> list[str]:
    """Everything that the oracle says of one job."""
    found = [
        *oracle.wrong_counters(sessions), *oracle.unended(sessions),
        *oracle.missing_objects(sessions, store), *oracle.unnamed_objects(sessions, store),
    ]  # fmt: skip
    return [words for words in found if id in words]


def shard(stage: Stage, index: int = 0) -> Callable[[str], Any]:
    """The condition for one shard of a job."""
    return lambda job: (Shard.job_id == job) & (Shard.stage == stage.value) & (Shard.index == index)


#: What is done to the rows, and words of what has to be found.
TAMPERED: dict[str, tuple[Callable[[str], Any], str]] = {
    "a shard forgotten": (
        lambda job: update(Shard).where(shard(Stage.TEXT)(job)).values(state="ready"), "text 0 ready",
    ),
    "an item lost by the counters": (
        lambda job: update(Job).where(Job.id == job).values(items_succeeded=5), "5 items were counted of 6",
    ),
    "an item counted twice": (
        lambda job: update(Job).where(Job.id == job).values(items_succeeded=7), "items_succeeded is 7",
    ),
    "a stage counted twice": (
        lambda job: update(JobStage).where(JobStage.job_id == job, JobStage.stage == "text").values(shards_done=3),
        "shards_done is 3, and the shards have 2",
    ),
    "a job that never ends": (
        lambda job: update(Job).where(Job.id == job).values(status="running", finished_at=None),
        "running with every shard ended",
    ),
    "an open shard too many": (
        lambda job: update(Job).where(Job.id == job).values(shards_open=1), "shards_open is 1, and 0 are",
    ),
}  # fmt: skip


def test_a_sound_job_has_no_findings(sessions: Sessions, store: ObjectStore, job: str) -> None:
    """Nothing is found where nothing is wrong."""
    assert findings(sessions, store, job) == []


@pytest.mark.parametrize("fault", TAMPERED)
def test_wrong_rows_are_found(sessions: Sessions, store: ObjectStore, job: str, fault: str) -> None:
    """A row that is not as the others say is named."""
    tamper, words = TAMPERED[fault]
    with sessions.begin() as session:
        assert session.execute(tamper(job)).rowcount == 1  # type: ignore[attr-defined]
    try:
        assert any(words in finding for finding in findings(sessions, store, job)), fault
    finally:
        with sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job).values(deleted_at=func.now()))


def test_wrong_objects_are_found(sessions: Sessions, store: ObjectStore, job: str) -> None:
    """An object that is gone, one that holds other bytes, and one that no row names."""
    keys = sorted(oracle.named_objects(sessions, store).keys() & {o.key for o in store.list(f"jobs/{job}/")})
    gone, changed = [key for key in keys if "/text/" in key]
    content = store.get(gone)
    store.delete([gone])
    store.put(changed, b"other bytes", "text/plain")
    store.put(orphan := f"jobs/{job}/text/orphan", b"", "text/plain")
    found = findings(sessions, store, job)
    store.put(gone, content, "text/plain")
    store.put(changed, b"text 1", "text/plain")
    store.delete([orphan])
    assert set(found) == {f"{gone} is not there", f"{changed} has another sha256 than its row says", orphan}


def test_the_judges_tell_lost_from_doubled_and_wrong(sessions: Sessions, job: str) -> None:
    """Rows of a job compared with those of a calm run, and jobs of which no client knows."""
    runs = [_compared(["a", "b"]), _compared(["a", "b", "b", "c"]), _compared(["a", "b", "c"], value=2.0)]
    vanished = Run(KIND, 0.0, "key", job_id="job-that-was-accepted")
    judged = verdict.Verdict()
    verdict.judge_rows(judged, [*runs, vanished], sessions, Watch(sessions))
    verdict.judge_runs(judged, [*runs, vanished])
    assert [words.partition("): ")[2] for words in judged.lost] == [
        "lost: 1 items have no row", "lost: it was accepted and is not there",
    ]  # fmt: skip
    assert f"{job} was never answered for" in judged.doubled
    assert any(words.endswith("doubled: 1 rows too many") for words in judged.doubled)
    assert [words.partition("): ")[2] for words in judged.wrong] == ["wrong: the results of some items differ"]


def test_what_a_zombie_wrote_is_found(sessions: Sessions, job: str) -> None:
    """A result under a lease that was lost while its worker was frozen."""
    watch = Watch(sessions)
    with sessions() as session:
        row = session.query(Shard).where(shard(Stage.TEXT)(job)).one()
        token = row.result_key.rpartition("-")[2]  # type: ignore[union-attr]
    assert watch.zombie_writes() == []
    watch.zombies.append(Held(row.id, UUID(token)))
    assert watch.zombie_writes() == [row.result_key]


KIND = Kind("kind", {})


def _table(ids: list[str], value: float) -> pa.Table:
    return pa.table({"id": ids, "fused": [value] * len(ids)})


def _compared(ids: list[str], value: float = 1.0) -> Run:
    """A run that came to these rows, compared with one that came to a, b and c."""
    expected = Outcome(JobStatus.SUCCEEDED, None, (3, 3, 0, 0), (), (), _table(["a", "b", "c"], 1.0))
    run = Run(KIND, time.monotonic(), "key")
    run.outcome = Outcome(JobStatus.SUCCEEDED, None, (3, 3, 0, 0), (), (), _table(ids, value))
    run.problems += run.outcome.faults(expected)
    return run
