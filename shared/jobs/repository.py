"""Jobs as callers see them: created, found, listed, cancelled, deleted, and shown. A tenant is in every query."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared import schemas
from shared.errors import ConflictError, InvalidRequestError, NotFoundError
from shared.jobs import batches, engine, registry
from shared.jobs.files import file_not_found, pin_files
from shared.jobs.models import Job, JobFile, JobSource, JobStage, Model, Shard
from shared.jobs.protocol import protocol_of
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.jobs.transitions import fair_tags, set_deadline, set_status
from shared.queues import Queue, Stage
from shared.schemas import JobStatus, JobType

#: The cost of a plan is counted in so many bytes; of a prefix it is not known before, and taken to be much.
PLAN_BYTES, UNKNOWN_PLAN_COST = 1024**2, 1000.0


@dataclass(frozen=True)
class NewJob:
    """A job that was accepted. `request` is without inline items; `file_ids` are what it reads, `input` among them;
    `features` is the job whose feature set it reads, `model` what it predicts with, `encoders` the models among its
    encoders."""

    id: str
    tenant: str
    request: Mapping[str, Any]
    request_sha256: str
    idempotency_key: str | None = None
    file_ids: Collection[str] = field(default_factory=tuple)
    features: str | None = None
    model: str | None = None
    encoders: Collection[str] = ()
    input_bytes: int = 0
    timeout_seconds: int | None = None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; what is empty does not filter."""

    statuses: Sequence[JobStatus] = ()
    type: JobType | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def create(session: Session, new: NewJob) -> Job | None:
    """Inserts a job in state `queued`, without shards yet; the caller lays out a plan or calls `queue_plan`.

    None: another request with its idempotency key came first. Raises NotFoundError if the file that `input` names
    is gone, or the feature set or the model.
    """
    request = new.request
    pinned = pin_files(session, new.tenant, new.file_ids)
    source = (request.get("input") or {}).get("file_id")
    if source is not None and source not in pinned:
        raise file_not_found(source, param="input.file_id")
    job: Job | None = session.scalar(
        upsert(Job)
        .values(
            id=new.id, tenant=new.tenant, type=request["type"], priority=request["priority"], request=request,
            metadata_=request["metadata"], idempotency_key=new.idempotency_key, request_sha256=new.request_sha256,
            input_bytes=new.input_bytes,
        )
        .on_conflict_do_nothing(constraint="jobs_idempotency")
        .returning(Job)
    )  # fmt: skip
    if job is None:
        return None
    if pinned:
        session.execute(insert(JobFile), [{"job_id": job.id, "file_id": id} for id in pinned])
    _pin_sources(session, new)
    if "batch" in request:
        batches.add(session, job)
    set_deadline(job, new.timeout_seconds)
    set_status(session, job, JobStatus.QUEUED)
    return job


def _pin_sources(session: Session, new: NewJob) -> None:
    """Locks what the job needs until it is written down that the job needs it: then nobody can delete it."""
    if new.features is not None:
        find_features(session, new.tenant, new.features, lock=True)
    models = sorted({*new.encoders, *filter(None, [new.model])})
    for id in models:
        registry.find_model(session, new.tenant, id, lock=True)
    sources = [{"job_id": new.id, "source_id": id} for id in (*filter(None, [new.features]), *models)]
    if sources:
        session.execute(insert(JobSource), sources)


def find_features(session: Session, tenant: str, id: str, *, lock: bool = False) -> Job:
    """The job that made a feature set; `lock`: it cannot be deleted before the end of this transaction.

    Raises NotFoundError (`features_not_found`), ConflictError (`job_not_finished`).
    """
    query = select(Job).where(Job.id == id, Job.tenant == tenant, Job.deleted_at.is_(None))
    job = session.scalar(query.with_for_update(read=True) if lock else query)
    if job is None or job.request.get("features") is not None:
        raise NotFoundError(f"There is no feature set of a job {id!r}.", code="features_not_found", param="features")
    if job.status != JobStatus.SUCCEEDED:
        message = f"The job {id!r} is {job.status}: a feature set can be used when its job has succeeded."
        raise ConflictError(message, code="job_not_finished", param="features")
    return job


def queue_plan(session: Session, job: Job) -> None:
    """Leaves the planning of a new job to the dispatcher. It costs what there is to read."""
    of_a_prefix = (job.request.get("input") or {}).get("s3_prefix") is not None
    cost = UNKNOWN_PLAN_COST if of_a_prefix else 1.0 + job.input_bytes / PLAN_BYTES
    [vtime] = fair_tags(session, Queue.PLAN, job.tenant, [cost])
    session.add(JobStage(job_id=job.id, stage=Stage.PLAN, shards_total=1))
    session.add(
        Shard(
            job_id=job.id, tenant=job.tenant, stage=Stage.PLAN, queue=Queue.PLAN, index=0, priority=job.priority,
            cost=cost, vtime=vtime, protocol=protocol_of(Stage.PLAN, job.request),
        )
    )  # fmt: skip
    job.shards_open = 1


def find_repeat(session: Session, tenant: str, idempotency_key: str, request_sha256: str) -> Job | None:
    """The job that was created under this key. Raises InvalidRequestError if its request was another."""
    job = session.scalar(select(Job).where(Job.tenant == tenant, Job.idempotency_key == idempotency_key))
    if job is not None and job.request_sha256 != request_sha256:
        message = "This Idempotency-Key was used for another request; a new request needs a new key."
        raise InvalidRequestError(message, code="idempotency_key_reused", param="Idempotency-Key")
    return job


def find(session: Session, tenant: str, id: str, *, lock: bool = False) -> Job:
    """A job. Raises NotFoundError (`job_not_found`)."""
    query = select(Job).where(Job.id == id, Job.tenant == tenant, Job.deleted_at.is_(None))
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"There is no job {id!r}.", code="job_not_found")
    return job


def list_jobs(
    session: Session, tenant: str, wanted: JobFilter, *, limit: int, after: str | None = None
) -> Sequence[Job]:
    """Up to `limit` jobs, newest first, from behind `after` on."""
    query = select(Job).where(Job.tenant == tenant, Job.deleted_at.is_(None)).order_by(Job.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Job.id < after)
    if wanted.statuses:
        query = query.where(Job.status.in_(wanted.statuses))
    if wanted.type is not None:
        query = query.where(Job.type == wanted.type)
    if wanted.metadata:
        query = query.where(Job.metadata_.contains(dict(wanted.metadata)))
    return session.scalars(query).all()


def cancel(session: Session, tenant: str, id: str) -> Job:
    """Asks for a job's end; one that has ended stays as it is."""
    job = find(session, tenant, id, lock=True)
    engine.cancel(session, job)
    return job


def delete(session: Session, tenant: str, id: str) -> None:
    """Hides an ended job and frees its idempotency key; the dispatcher removes its rows and objects.

    Raises ConflictError (`job_not_finished`, `job_in_use`).
    """
    job = find(session, tenant, id, lock=True)
    if job.status not in ENDED_JOBS:
        raise ConflictError(f"The job {id!r} is {job.status}; cancel it first.", code="job_not_finished")
    if session.scalar(select(registry.is_needed(id))):
        message = f"A job that has not ended, a model or an index needs the feature set or a model of the job {id!r}."
        raise ConflictError(message, code="job_in_use")
    job.deleted_at, job.idempotency_key = func.clock_timestamp(), None


def ready_queues(session: Session, job_id: str) -> list[Queue]:
    """The queues in which shards of the job can be claimed: where to send hints."""
    rows = session.scalars(
        select(Shard.queue).where(Shard.job_id == job_id, Shard.state == ShardState.READY).distinct()
    )
    return [Queue(queue) for queue in rows]


def snapshots(session: Session, jobs: Iterable[Job]) -> list[schemas.Job]:
    """The jobs as they are shown."""
    jobs = list(jobs)
    session.flush()
    stages: dict[str, dict[Stage, schemas.StageProgress]] = defaultdict(dict)
    rows = session.scalars(select(JobStage).where(JobStage.job_id.in_([job.id for job in jobs])))
    for row in sorted(rows, key=lambda row: list(Stage).index(Stage(row.stage))):
        stages[row.job_id][Stage(row.stage)] = _stage(row)
    models: dict[str, list[str]] = defaultdict(list)
    made = select(Model.job_id, Model.id).where(Model.job_id.in_([job.id for job in jobs])).order_by(Model.id)
    for job_id, id in session.execute(made):
        models[job_id or ""].append(id)
    return [_snapshot(job, stages[job.id], models[job.id]) for job in jobs]


def snapshot(session: Session, job: Job) -> schemas.Job:
    """One job as it is shown, with what this transaction did to it."""
    session.flush()
    session.refresh(job)
    return snapshots(session, [job])[0]


def _snapshot(job: Job, stages: dict[Stage, schemas.StageProgress], models: list[str]) -> schemas.Job:
    error = schemas.JobError(code=job.error_code, message=job.error_message or "") if job.error_code else None
    return schemas.Job(
        id=job.id,
        type=JobType(job.type),
        status=JobStatus(job.status),
        created_at=int(job.created_at.timestamp()),
        started_at=_seconds(job.started_at),
        finished_at=_seconds(job.finished_at),
        cancel_requested_at=_seconds(job.cancel_requested_at),
        deadline_at=_seconds(job.deadline_at),
        input_bytes=job.input_bytes,
        items=schemas.ItemCounts(
            total=job.items_total, succeeded=job.items_succeeded, partial=job.items_partial, failed=job.items_failed
        ),
        stages=stages,
        request=job.request,
        metadata=job.metadata_,
        models=models,
        error=error,
    )


def _stage(row: JobStage) -> schemas.StageProgress:
    return schemas.StageProgress(
        shards_total=row.shards_total,
        shards_done=row.shards_done,
        shards_failed=row.shards_failed,
        items_total=row.items_total,
        items_done=row.items_done,
        items_cached=row.items_cached,
        started_at=row.started_at.timestamp() if row.started_at else None,
        finished_at=row.finished_at.timestamp() if row.finished_at else None,
    )


def _seconds(time: datetime | None) -> int | None:
    return int(time.timestamp()) if time else None
