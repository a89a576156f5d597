"""Two releases side by side: shards of a newer protocol wait for workers that understand it, and hold up nothing."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import delete, func, insert, select, text, update

from shared.db import Sessions
from shared.ids import new_id
from shared.jobs import engine, protocol, repository
from shared.jobs.models import Job, Shard, Worker
from shared.jobs.protocol import PROTOCOL, Added
from shared.jobs.records import Lease
from shared.jobs.registry import live_workers, stranded_shards
from shared.jobs.repository import NewJob
from shared.jobs.retry import retry
from shared.queues import Queue, Stage
from shared.schemas import JobStatus
from tests.integration.test_engine import get_job, make_job, result_of, run_dry

NewRelease = Callable[..., None]


@pytest.fixture
def new_release(monkeypatch: pytest.MonkeyPatch) -> NewRelease:
    """Makes the code that of a release with another protocol for some stages."""

    def release(*stages: Stage, number: int = 2) -> None:
        added = tuple(Added(number, stage, lambda request: request.get("novel", True)) for stage in stages)
        monkeypatch.setattr(protocol, "ADDED", added)

    return release


@pytest.fixture(autouse=True)
def _empty(sessions: Sessions) -> Iterator[None]:
    yield
    with sessions.begin() as session:
        for table in (Job, Worker):
            session.execute(delete(table))


def claim(sessions: Sessions, queue: Queue, known: int, limit: int = 100) -> list[Lease]:
    """What a worker that understands `known` gets."""
    with sessions.begin() as session:
        return engine.claim(session, queue, "worker", limit=limit, protocol=known)


def test_a_worker_claims_what_it_understands(sessions: Sessions, new_release: NewRelease) -> None:
    new_release(Stage.TEXT)
    make_job(sessions, slices=3, modalities="ti")
    assert claim(sessions, Queue.TEXT, 1) == []
    assert [lease.protocol for lease in claim(sessions, Queue.IMAGE, 1)] == [1, 1, 1]
    assert [lease.protocol for lease in claim(sessions, Queue.TEXT, 2)] == [2, 2, 2]


def test_a_newer_worker_goes_on_with_what_was_there(sessions: Sessions, new_release: NewRelease) -> None:
    make_job(sessions, slices=2, modalities="t")
    new_release(Stage.TEXT)
    make_job(sessions, slices=2, modalities="t", tenant="u")
    assert sorted(lease.protocol for lease in claim(sessions, Queue.TEXT, 2)) == [1, 1, 2, 2]


def test_what_is_too_new_holds_up_nothing(sessions: Sessions, new_release: NewRelease) -> None:
    """More of it than a claim looks at, and before all else."""
    new_release(Stage.TEXT)
    make_job(sessions, slices=2 * engine.CLAIM_WINDOW, modalities="t")
    new_release()
    make_job(sessions, slices=1, modalities="t")
    assert [lease.protocol for lease in claim(sessions, Queue.TEXT, 1)] == [1]


@pytest.mark.parametrize("stage", [Stage.TEXT, Stage.FUSION, Stage.FIT])
def test_every_stage_that_is_laid_out_says_what_it_needs(
    sessions: Sessions, new_release: NewRelease, stage: Stage
) -> None:
    new_release(stage)
    id = make_job(sessions, slices=1, modalities="t", fitted=("text",))
    with sessions() as session:
        needed = dict(session.execute(select(Shard.stage, Shard.protocol).where(Shard.job_id == id)).all())
    assert needed == {**dict.fromkeys((Stage.TEXT, Stage.FUSION, Stage.FIT), 1), stage: 2}


@pytest.mark.parametrize(("novel", "needed"), [(True, 2), (False, 1)])
def test_a_plan_needs_what_its_request_asks_for(
    sessions: Sessions, new_release: NewRelease, novel: bool, needed: int
) -> None:
    new_release(Stage.PLAN)
    request = {"type": "features", "priority": 0, "metadata": {}, "novel": novel}
    with sessions.begin() as session:
        job = repository.create(session, NewJob(new_id("job"), "t", request, ""))
        assert job is not None
        repository.queue_plan(session, job)
    assert len(claim(sessions, Queue.PLAN, needed - 1)) == 0
    assert len(claim(sessions, Queue.PLAN, needed)) == 1


def test_a_retried_shard_stays_what_it_was_laid_out_as(sessions: Sessions, new_release: NewRelease) -> None:
    id = make_job(sessions, slices=1, modalities="t")
    with sessions.begin() as session:
        (lease,) = engine.claim(session, Queue.TEXT, "worker")
        engine.start(session, lease)
        engine.fail(session, lease, "boom", "It broke.", max_attempts=1)
    run_dry(sessions)
    new_release(Stage.TEXT)
    with sessions.begin() as session:
        retry(session, session.get_one(Job, id))
    assert [lease.protocol for lease in claim(sessions, Queue.TEXT, 1)] == [1]


def add_worker(sessions: Sessions, pool: str, known: int, *, silent: bool = False) -> None:
    with sessions.begin() as session:
        row = {"id": new_id("worker"), "pool": pool, "host": "here", "pid": 1, "version": "x", "protocol": known}
        session.execute(insert(Worker), [row])
        if silent:
            long_ago = func.clock_timestamp() - text("interval '1 minute'")
            session.execute(update(Worker).where(Worker.id == row["id"]).values(last_seen_at=long_ago))


def test_shards_that_no_live_worker_understands_are_named(sessions: Sessions, new_release: NewRelease) -> None:
    new_release(Stage.TEXT, Stage.IMAGE, Stage.AUDIO)
    make_job(sessions, slices=3)
    for pool, known in (("text", 1), ("image", 1), ("image", 2), ("fusion", 1)):
        add_worker(sessions, pool, known)
    add_worker(sessions, "text", 2, silent=True)
    with sessions() as session:
        assert stranded_shards(session) == {Queue.TEXT: 3}
        assert sorted((w.pool, w.protocol) for w in live_workers(session, "t")) == [
            ("fusion", 1), ("image", 1), ("image", 2), ("text", 1),
        ]  # fmt: skip
    add_worker(sessions, "text", 2)
    with sessions() as session:
        assert stranded_shards(session) == {}


def test_a_job_ends_when_both_releases_work_on_it(sessions: Sessions, new_release: NewRelease) -> None:
    newer = PROTOCOL + 1
    new_release(Stage.FUSION, number=newer)
    id = make_job(sessions, slices=4)
    done = run_dry(sessions)  # by workers of the older one
    assert {lease.stage for lease in done} == {Stage.TEXT, Stage.IMAGE, Stage.AUDIO}
    for lease in claim(sessions, Queue.FUSION, newer):
        with sessions.begin() as session:
            engine.start(session, lease)
            assert engine.finish(session, [result_of(lease)])
    assert get_job(sessions, id).status == JobStatus.SUCCEEDED
