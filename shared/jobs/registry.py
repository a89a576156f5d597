"""The models that a tenant's jobs made, the workers that were heard from, and what none of them can do."""

from collections import defaultdict
from datetime import timedelta
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Select, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from shared import schemas
from shared.errors import ConflictError, NotFoundError
from shared.jobs.models import Job, JobSource, Model, Shard, Worker
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.queues import Modality, Queue
from shared.schemas import JobStatus, JobType

#: Workers that said nothing for longer are not shown.
_SEEN_WITHIN = timedelta(seconds=30)


def fitted_models(session: Session, tenant: str, id: str | None = None) -> list[schemas.ModelEntry]:
    """The tenant's models, newest first; only the one with this id if it is given."""
    query = _kept(select(Model).where(Model.tenant == tenant)).order_by(Model.id.desc())
    rows = session.scalars(query if id is None else query.where(Model.id == id))
    return [
        schemas.ModelEntry(
            id=row.id,
            created=int(row.created_at.timestamp()),
            owned_by=tenant,
            kind=cast(schemas.ModelKind, row.kind),
            modality=Modality(row.modality) if row.modality else None,
            dimension=row.dimension or None,
            loader=str(row.spec.get("loader", "")),
            revision=row.fingerprint,
            job_id=row.job_id,
            fine_tuned=row.spec.get("fine_tuned"),
            files=sorted(row.spec.get("files", ())),
        )
        for row in rows
    ]


def _kept(query: Select[Model]) -> Select[Model]:
    """But for the models of deleted jobs: the sweep removes them with their jobs."""
    return query.outerjoin(Job, Job.id == Model.job_id).where(Job.deleted_at.is_(None))


def is_needed(source_id: Any) -> ColumnElement[bool]:
    """The condition that the feature set or model with this id, or a model that came of it, is needed: by a job which
    has not ended, by another job's model that takes its vectors, or by an index that is searched in its space.

    `source_id` may be a column of a query that this is part of: all tables here have names of their own.
    """
    maker, reader, user = aliased(Model), aliased(Job), aliased(Model)
    made = select(maker.id).where(maker.job_id == source_id).correlate_except(maker)
    read = exists().where(
        (JobSource.source_id == source_id) | JobSource.source_id.in_(made),
        reader.id == JobSource.job_id,
        or_(reader.status.not_in(ENDED_JOBS), _searches_with(reader, JobSource.source_id)),
    )
    takes = [user.spec["fine_tuned"]["encoders"][m.value].as_string() for m in Modality]
    built_on = exists().where(
        or_(*(encoder == source_id for encoder in takes), *(encoder.in_(made) for encoder in takes)),
        func.coalesce(user.job_id, "") != source_id,  # a job's own models go with it
    )
    return read.correlate_except(JobSource, reader) | built_on.correlate_except(user)


def _searches_with(job: type[Job], source_id: Any) -> ColumnElement[bool]:
    """The condition that a job's index needs the model: without it, nothing that is sent can be searched by."""
    usable = (job.type == JobType.INDEX) & (job.status == JobStatus.SUCCEEDED) & job.deleted_at.is_(None)
    searches: ColumnElement[bool] = usable & (job.request["model"].as_string() == source_id)
    return searches


def is_read(source_id: str) -> ColumnElement[bool]:
    """The condition that a job which has not ended reads the feature set or model with this id."""
    reader = aliased(Job)
    return exists().where(
        JobSource.source_id == source_id, reader.id == JobSource.job_id, reader.status.not_in(ENDED_JOBS)
    )


def find_model(session: Session, tenant: str, id: str, *, lock: bool = False, param: str = "model") -> Model:
    """A model that a job of the tenant made; `lock`: neither it nor its job can be deleted before the end of this
    transaction.

    Raises NotFoundError (`model_not_found`).
    """
    named = (Model.id == id) & (Model.tenant == tenant)
    if lock:
        session.execute(
            select(Job.id).join(Model, Model.job_id == Job.id).where(named).with_for_update(read=True, of=Job)
        )
    query = _kept(select(Model).where(named))
    model = session.scalar(query.with_for_update(read=True, of=Model) if lock else query)
    if model is None:
        raise NotFoundError(f"There is no model {id!r} that a job of yours made.", code="model_not_found", param=param)
    return model


def delete_model(session: Session, tenant: str, id: str) -> None:
    """Deletes a model's row; its objects are deleted after the commit.

    Raises NotFoundError (`model_not_found`), ConflictError (`model_in_use`).
    """
    model = session.scalar(select(Model).where(Model.id == id, Model.tenant == tenant).with_for_update())
    if model is None:
        raise NotFoundError(f"There is no model {id!r} that a job of yours made.", code="model_not_found")
    maker = None if model.job_id is None else session.get(Job, model.job_id)
    if (maker is not None and maker.status not in ENDED_JOBS) or session.scalar(select(is_needed(id))):
        message = f"A job that has not ended, a model that takes its vectors, or an index needs the model {id!r}."
        raise ConflictError(message, code="model_in_use")
    session.delete(model)


def live_workers(session: Session, tenant: str) -> list[schemas.WorkerEntry]:
    """The workers seen of late; of the shards they hold only the tenant's are named."""
    shards: dict[str, list[dict[str, Any]]] = defaultdict(list)
    held = select(Shard).where(Shard.state == ShardState.LEASED, Shard.tenant == tenant).order_by(Shard.id)
    for shard in session.scalars(held):
        since = shard.started_at.timestamp() if shard.started_at else None
        place = {"job_id": shard.job_id, "stage": shard.stage, "shard": shard.index, "started_at": since}
        shards[shard.worker or ""].append(place)
    rows = session.scalars(
        select(Worker).where(Worker.last_seen_at > func.clock_timestamp() - _SEEN_WITHIN).order_by(Worker.id)
    )
    return [
        schemas.WorkerEntry(
            id=row.id,
            pool=row.pool,
            host=row.host,
            pid=row.pid,
            version=row.version,
            protocol=row.protocol,
            started_at=row.started_at.timestamp(),
            last_seen_at=row.last_seen_at.timestamp(),
            state=cast(Literal["idle", "busy", "draining"], row.state),
            loaded_models=row.loaded_models,
            current_shards=shards[row.id],
        )
        for row in rows
    ]


def stranded_shards(session: Session) -> dict[Queue, int]:
    """Ready shards of a newer protocol than any live worker of their pool understands, by queue.

    Queues with none are left out, and so are pools without workers: there it is not the release that is missing.
    """
    alive = Worker.last_seen_at > func.clock_timestamp() - _SEEN_WITHIN
    pools = select(Worker.pool, func.max(Worker.protocol).label("known")).where(alive).group_by(Worker.pool).subquery()
    rows = session.execute(
        select(Shard.queue, func.count())
        .join(pools, pools.c.pool == Shard.queue)
        .where(Shard.state == ShardState.READY, Shard.protocol > pools.c.known)
        .group_by(Shard.queue)
    )
    return {Queue(queue): count for queue, count in rows.all()}
