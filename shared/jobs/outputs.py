"""What a job leaves behind, besides its own row: events, items' errors and the parts of its feature set."""

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from shared import schemas
from shared.errors import InvalidRequestError
from shared.jobs.models import Event, ItemError, Job, Shard
from shared.jobs.states import ShardState
from shared.queues import Modality, Stage
from shared.schemas import JobType

#: How an error of a whole item (no modality) is written in the cursor of a list.
_WHOLE_ITEM = "item"


def events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[schemas.JobEvent]:
    """Up to `limit` events, oldest first, behind the one with the id `after`."""
    rows = session.scalars(
        select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    )
    return [
        schemas.JobEvent(id=str(row.id), type=row.type, created_at=row.created_at.timestamp(), data=row.data)
        for row in rows
    ]


def item_errors(session: Session, job_id: str, *, limit: int, after: str | None = None) -> list[schemas.ItemErrorEntry]:
    """Up to `limit` errors in the order of the items, from behind `after` (an entry's id) on."""
    query = select(ItemError).where(ItemError.job_id == job_id).order_by(ItemError.item_index, ItemError.modality)
    if after is not None:
        query = query.where(tuple_(ItemError.item_index, ItemError.modality) > tuple_(*_place(after)))
    return [_error_entry(row) for row in session.scalars(query.limit(limit))]


def result_stage(job: Job) -> Stage:
    """The stage whose parts are a job's results."""
    if job.type != JobType.PREDICT:
        return Stage.FUSION
    return Stage.GENERATE if job.request.get("generates") else Stage.PREDICT


def parts(
    session: Session, job_id: str, *, stage: Stage = Stage.FUSION, limit: int | None = None, after: int = -1
) -> list[schemas.Part]:
    """The Parquet parts that a stage wrote (features; or predictions) in the order of the items, without links;
    `after` is the index of a part."""
    rows: Sequence[Shard] = session.scalars(
        select(Shard)
        .where(
            Shard.job_id == job_id, Shard.stage == stage, Shard.index > after,
            Shard.state == ShardState.DONE, Shard.result_key.is_not(None),
        )
        .order_by(Shard.index)
        .limit(limit)
    ).all()  # fmt: skip
    return [
        schemas.Part(
            index=row.index,
            key=row.result_key or "",
            rows=row.result.get("rows", 0),
            bytes=row.result_bytes or 0,
            sha256=row.result_sha256 or "",
        )
        for row in rows
    ]


def _error_entry(row: ItemError) -> schemas.ItemErrorEntry:
    return schemas.ItemErrorEntry(
        id=f"{row.item_index}-{row.modality or _WHOLE_ITEM}",
        item_id=row.item_id,
        item_index=row.item_index,
        modality=Modality(row.modality) if row.modality else None,
        code=row.code,
        message=row.message,
    )


def _place(cursor: str) -> tuple[int, str]:
    index, _, modality = cursor.partition("-")
    if not index.isdecimal() or modality not in {_WHOLE_ITEM, *Modality}:
        raise InvalidRequestError(f"{cursor!r} is not the id of an entry of this list.", param="after")
    return int(index), "" if modality == _WHOLE_ITEM else modality
