"""The table of indexes on a real Postgres: written once whoever dies, searched by HNSW, complete under filters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, event, func, select, text

from shared.db import Sessions
from shared.errors import DeadlineError, LeaseLostError
from shared.ids import new_id
from shared.jobs import engine
from shared.jobs.models import IndexedItem, Job, JobStage, Shard
from shared.jobs.records import Finished, Lease
from shared.jobs.search import nearest, padded, write_items
from shared.jobs.transitions import set_status
from shared.queues import Modality, Queue, Stage
from shared.schemas import JobStatus
from shared.search import SearchFilter

DIMENSION = 32
EVERYTHING = SearchFilter()


def add_job(sessions: Sessions, tenant: str = "default", shards: int = 1) -> str:
    """A running index job whose shards are ready."""
    id = new_id("job")
    with sessions.begin() as session:
        request = {"type": "index", "model": "model-1", "features": "job-1"}
        job = Job(id=id, tenant=tenant, type="index", request=request, request_sha256="", shards_open=shards)
        session.add(job)
        session.flush()
        session.add(JobStage(job_id=id, stage=Stage.INDEX, shards_total=shards))
        for index in range(shards):
            session.add(Shard(job_id=id, tenant=tenant, stage=Stage.INDEX, queue=Queue.FUSION, index=index))
        set_status(session, job, JobStatus.RUNNING)
    return id


def claim(sessions: Sessions) -> Lease:
    with sessions.begin() as session:
        [lease] = engine.claim(session, Queue.FUSION, "worker-test", limit=1)
        engine.start(session, lease)
    return lease


def row(place: int, vector: NDArray[np.float64], **more: Any) -> dict[str, Any]:
    plain = {"label": [f"label-{place % 100}"], "split": None, "metadata_": {"place": place % 10}}
    media = {"text": None, "image_ref": f"{place}.png", "audio_ref": None, "text_vector": None, "audio_vector": None}
    return {"item_id": f"item-{place:05d}", "image_vector": padded(vector.tolist()), **plain, **media, **more}


def fill(sessions: Sessions, vectors: NDArray[np.float64], tenant: str = "default") -> str:
    """An index of pictures with these vectors, through lease and end."""
    id = add_job(sessions, tenant)
    lease = claim(sessions)
    with sessions.begin() as session:
        write_items(session, lease, [row(place, vector) for place, vector in enumerate(vectors)])
    with sessions.begin() as session:
        engine.finish(session, [Finished(lease, None, items_done=len(vectors), succeeded=len(vectors))])
    return id


def count(sessions: Sessions, id: str) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).where(IndexedItem.job_id == id)) or 0


def directions(count: int, seed: int) -> NDArray[np.float64]:
    """Unit vectors around a few hundred centres, as learned spaces have them: float64 [count, DIMENSION]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(200, DIMENSION))
    rows = centres[rng.integers(0, len(centres), count)] + rng.normal(0, 0.5, (count, DIMENSION))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_what_a_dead_worker_wrote_is_not_there(sessions: Sessions) -> None:
    """Its connection ends in the middle of the transaction, as after kill -9; the next attempt writes each row once."""
    id, lease = add_job(sessions), claim(sessions)
    rows = [row(place, vector) for place, vector in enumerate(directions(20, 0))]
    session = sessions()
    write_items(session, lease, rows)
    session.connection().invalidate()
    session.close()
    assert count(sessions, id) == 0
    for _ in range(2):  # and again: the worker died after its commit, before the shard's end
        with sessions.begin() as session:
            write_items(session, lease, rows)
    assert count(sessions, id) == 20


def test_a_zombie_changes_nothing(sessions: Sessions) -> None:
    """A worker that was frozen while its shard was taken back: another one's rows stay."""
    id, late = add_job(sessions), claim(sessions)
    with sessions.begin() as session:
        engine.release(session, late)
    lease = claim(sessions)
    assert lease.shard_id == late.shard_id
    vectors = directions(20, 1)
    with sessions.begin() as session:
        write_items(session, lease, [row(place, vector) for place, vector in enumerate(vectors)])
    with pytest.raises(LeaseLostError), sessions.begin() as session:
        write_items(session, late, [row(0, vectors[1])])
    assert count(sessions, id) == 20
    with sessions() as session:
        [found] = nearest(session, id, vectors[0].tolist(), [Modality.IMAGE], EVERYTHING, limit=1)
    assert (found.id, found.score) == ("item-00000", pytest.approx(1, abs=1e-3))


def test_a_retried_slice_replaces_its_rows(sessions: Sessions) -> None:
    """An item that was whole and is partial now has no vector any more where it had one; others' rows stay."""
    id = add_job(sessions, shards=2)
    first, second = sorted([claim(sessions), claim(sessions)], key=lambda lease: lease.index)
    vectors = directions(4, 2)
    with sessions.begin() as session:
        write_items(session, first, [row(0, vectors[0]), row(1, vectors[1])])
    with sessions.begin() as session:
        write_items(session, second, [row(2, vectors[2])])
    with sessions.begin() as session:
        write_items(session, first, [row(1, vectors[3])])
    with sessions() as session:
        found = nearest(session, id, vectors[3].tolist(), [Modality.IMAGE], EVERYTHING, limit=10)
    assert [one.id for one in found] == ["item-00001", "item-00002"]


@pytest.fixture(scope="module")
def large(sessions: Sessions) -> tuple[str, NDArray[np.float64]]:
    """An index of 4,000 pictures beside those of other tenants, one as large and two small ones, and statistics."""
    fill(sessions, directions(4000, 11), "other")
    for seed in (12, 13):
        fill(sessions, directions(300, seed), "small")
    vectors = directions(4000, 10)
    id = fill(sessions, vectors)
    with sessions.begin() as session:
        session.execute(text("ANALYZE indexed_items"))
    return id, vectors


@contextmanager
def explained(sessions: Sessions) -> Iterator[list[str]]:
    """The plans of the searches within, as Postgres chooses them for the very same statements and settings."""
    plans: list[str] = []
    bind = sessions.kw["bind"]
    assert isinstance(bind, Engine)

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "<=>" in statement and not statement.startswith("EXPLAIN"):
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(line for (line,) in other.fetchall()))

    event.listen(bind, "before_cursor_execute", explain)
    yield plans
    event.remove(bind, "before_cursor_execute", explain)


def ids(sessions: Sessions, index: str, vector: NDArray[np.float64], **more: Any) -> list[str]:
    wanted = {"wanted": EVERYTHING, "limit": 10, **more}
    with sessions() as session:
        return [one.id for one in nearest(session, index, vector.tolist(), [Modality.IMAGE], **wanted)]


def test_the_planner_takes_the_index_for_vectors(sessions: Sessions, large: tuple[str, NDArray[np.float64]]) -> None:
    id, vectors = large
    with explained(sessions) as plans:
        ids(sessions, id, vectors[0])
        ids(sessions, id, vectors[0], exact=True)
    by_index, exact = plans
    assert "Index Scan using indexed_items_image" in by_index, by_index
    assert "Sort" not in by_index
    assert "indexed_items_image" not in exact, exact


def test_a_small_index_is_read_through(sessions: Sessions, large: tuple[str, NDArray[np.float64]]) -> None:
    """Among the many of others, the graph would lead everywhere but here."""
    vectors = directions(50, 14)
    id = fill(sessions, vectors)
    with sessions.begin() as session:
        session.execute(text("ANALYZE indexed_items"))
    with explained(sessions) as plans:
        assert ids(sessions, id, vectors[7]) == ids(sessions, id, vectors[7], exact=True)
    assert "indexed_items_image" not in plans[0], plans[0]


def test_most_of_the_nearest_are_found(sessions: Sessions, large: tuple[str, NDArray[np.float64]]) -> None:
    """recall@10 against numpy, in half of a table: the other half is another tenant's."""
    id, vectors = large
    queries = directions(40, 20)
    hits = []
    for query in queries:
        best = {f"item-{place:05d}" for place in np.argsort(-vectors @ query)[:10]}
        found = ids(sessions, id, query)
        assert len(found) == 10
        hits.append(len(best & set(found)) / 10)
        assert len(best & set(ids(sessions, id, query, exact=True))) >= 9, "half precision may swap the last two"
    assert np.mean(hits) >= 0.95, np.mean(hits)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (SearchFilter(label="label-7"), lambda place: place % 100 == 7),
        (SearchFilter(metadata={"place": 3}), lambda place: place % 10 == 3),
        (SearchFilter(label=["label-3", "label-13"], metadata={"place": 3}), lambda place: place % 100 in (3, 13)),
    ],
)
def test_filters_leave_enough(
    sessions: Sessions, large: tuple[str, NDArray[np.float64]], wanted: SearchFilter, passes: Any
) -> None:
    """One item in a hundred passes, and still all that are asked for are found, the nearest of them first."""
    id, vectors = large
    for query in directions(5, 21):
        order = [place for place in np.argsort(-vectors @ query) if passes(place)]
        found = ids(sessions, id, query, wanted=wanted, limit=30)
        assert len(found) == 30
        assert all(passes(int(one.removeprefix("item-"))) for one in found)
        best = {f"item-{place:05d}" for place in order[:30]}
        assert len(best & set(found)) >= 27


def test_a_search_that_takes_too_long_is_ended(sessions: Sessions, large: tuple[str, NDArray[np.float64]]) -> None:
    id, vectors = large
    with sessions.begin() as holder:
        holder.execute(text("LOCK TABLE indexed_items IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(DeadlineError, match="longer than the request allows"):
            ids(sessions, id, vectors[0], seconds=0.2)
