"""Indexes: items that index jobs wrote to be searched, and the nearest of them to a vector.

A search takes the HNSW index of a modality where the planner finds that quicker than a comparison with every item of
the job, as it does of a few thousand items. All jobs share it: the scan goes on until enough of this job's items, which
pass the filter, are found (`hnsw.iterative_scan`), and should it give up, every item is compared.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.errors import ConflictError, DeadlineError, InvalidRequestError, LeaseLostError, NotFoundError
from shared.jobs.models import INDEX_DIMENSION, IndexedItem, Job
from shared.jobs.records import Lease
from shared.jobs.transitions import held
from shared.queues import Modality
from shared.schemas import JobStatus, JobType
from shared.search import SearchFilter, SearchResult

#: How many candidates a scan of an index keeps: more find more of the nearest, and take longer.
_EF_SEARCH = 200

#: The order in which a scan that goes on finds is approximate: of so many times as many, the nearest are taken.
_MORE = 3

#: What the planner and the index need to be told for one transaction.
_SETTINGS = {
    "hnsw.ef_search": str(_EF_SEARCH),
    "hnsw.iterative_scan": "relaxed_order",
    "plan_cache_mode": "force_custom_plan",  # which way is quicker depends on the job
    "jit": "off",
}
#: Of all ways to find rows in order, an index of vectors has only this one.
_EXACT = {"enable_indexscan": "off"}


def padded(vector: Sequence[float]) -> list[float]:
    """A vector as the table has it."""
    return [*vector, *[0.0] * (INDEX_DIMENSION - len(vector))]


def write_items(session: Session, lease: Lease, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces what a shard's earlier attempts wrote by `rows`, the columns of IndexedItem but for whose they are.

    Raises LeaseLostError: then nothing must be committed.
    """
    session.execute(delete(IndexedItem).where(IndexedItem.shard_id == lease.shard_id))
    if rows:
        owner = {"job_id": lease.job_id, "shard_id": lease.shard_id}
        session.execute(insert(IndexedItem), [{**owner, **row} for row in rows])
    if held(session, lease.shard_id, lease.token) is None:  # last: nobody waits for this lock while rows are written
        raise LeaseLostError(f"The lease of shard {lease.shard_id} was lost.")


def find_index(session: Session, tenant: str, id: str) -> Job:
    """The job that made an index.

    Raises NotFoundError (`index_not_found`), InvalidRequestError (`not_an_index`), ConflictError (`job_not_finished`).
    """
    job = session.scalar(select(Job).where(Job.id == id, Job.tenant == tenant, Job.deleted_at.is_(None)))
    if job is None:
        raise NotFoundError(f"There is no index of a job {id!r}.", code="index_not_found", param="index")
    if job.type != JobType.INDEX:
        message = f"The job {id!r} made no index (it is of type {job.type}). {_advice(session, job)}"
        raise InvalidRequestError(message, code="not_an_index", param="index")
    if job.status != JobStatus.SUCCEEDED:
        message = f"The job {id!r} is {job.status}: its index can be searched when it has succeeded."
        raise ConflictError(message, code="job_not_finished", param="index")
    return job


def _advice(session: Session, job: Job) -> str:
    of_it = (Job.type == JobType.INDEX) & (Job.request["features"].as_string() == job.id)
    there = (Job.tenant == job.tenant) & (Job.status == JobStatus.SUCCEEDED) & Job.deleted_at.is_(None)
    newest = session.scalar(select(Job.id).where(of_it, there).order_by(Job.id.desc()).limit(1))
    if newest is not None:
        return f"An index of its feature set was made by {newest!r}: search there."
    return 'Make one of its feature set with a job of type "index", and search in what that makes.'


def vector_of(session: Session, index: str, item: str) -> list[float]:
    """The direction in the middle of an item's modalities. Raises NotFoundError (`item_not_found`)."""
    query = select(IndexedItem.text_vector, IndexedItem.image_vector, IndexedItem.audio_vector)
    row = session.execute(query.where(IndexedItem.job_id == index, IndexedItem.item_id == item)).first()
    if row is None:
        raise NotFoundError(f"The index has no item {item!r}.", code="item_not_found", param="query.id")
    return [sum(numbers) for numbers in zip(*filter(None, row), strict=True)]


def nearest(
    session: Session,
    index: str,
    vector: Sequence[float],
    modalities: Iterable[Modality],
    wanted: SearchFilter,
    *,
    limit: int,
    but: str | None = None,
    exact: bool = False,
    seconds: float = 10.0,
) -> list[SearchResult]:
    """The items of an index that are nearest to a vector by one of these modalities, `limit` at most, nearest first.

    `but` is an item that is not looked for. Raises DeadlineError.
    """
    allowed = [IndexedItem.job_id == index, *_conditions(wanted)]
    if but is not None:
        allowed.append(IndexedItem.item_id != but)
    best: dict[str, SearchResult] = {}
    until = time.monotonic() + seconds
    try:
        for modality in modalities:
            for found in _nearest_by(session, modality, padded(vector), allowed, limit, exact=exact, until=until):
                if found.id not in best or best[found.id].score < found.score:
                    best[found.id] = found
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "57014":  # query_canceled
            raise
        message = "The search took longer than the request allows; give it more time, or filter less."
        raise DeadlineError(message) from error
    return sorted(best.values(), key=lambda found: (-found.score, found.id))[:limit]


def _nearest_by(
    session: Session,
    modality: Modality,
    vector: list[float],
    allowed: list[ColumnElement[bool]],
    limit: int,
    *,
    exact: bool,
    until: float,
) -> list[SearchResult]:
    query = _query(modality, vector, allowed)
    rows: Sequence[Row[Any]] = ()
    if not exact:
        rows = _run(session, query.limit(limit * _MORE), _SETTINGS, until)
    if len(rows) < limit:
        rows = _run(session, query.limit(limit), _SETTINGS | _EXACT, until)
    return [SearchResult(**row._mapping, modality=modality) for row in rows]


def _run(session: Session, query: Select[Any], settings: dict[str, str], until: float) -> Sequence[Row[Any]]:
    """Runs a query under settings that hold for it alone, up to a monotonic time."""
    left = max(int((until - time.monotonic()) * 1000), 1)
    settings = settings | {"statement_timeout": str(left)}
    with session.begin_nested() as savepoint:
        session.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))
        rows = session.execute(query).all()
        savepoint.rollback()  # takes the settings back
    return rows


def _query(modality: Modality, vector: list[float], allowed: list[ColumnElement[bool]]) -> Select[Any]:
    column: InstrumentedAttribute[Any] = getattr(IndexedItem, f"{modality.value}_vector")
    distance = column.cosine_distance(vector)
    shown = (
        IndexedItem.item_id.label("id"), (1 - distance).label("score"), IndexedItem.label, IndexedItem.split,
        IndexedItem.metadata_.label("metadata"), IndexedItem.text, IndexedItem.image_ref, IndexedItem.audio_ref,
    )  # fmt: skip
    return select(*shown).where(column.is_not(None), *allowed).order_by(distance)


def _conditions(wanted: SearchFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.labels:
        conditions.append(IndexedItem.label.overlap(wanted.labels))
    if wanted.split is not None:
        conditions.append(IndexedItem.split == wanted.split)
    if wanted.metadata:
        conditions.append(IndexedItem.metadata_.contains(dict(wanted.metadata)))
    return conditions
