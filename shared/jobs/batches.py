"""Batches: a job that answers a file of requests, and the files of its answers once they are written."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from shared import batches as shapes
from shared.batches import BatchError, BatchErrors, BatchOf, BatchUsage, RequestCounts
from shared.errors import NotFoundError
from shared.ids import new_id
from shared.jobs.files import add_file
from shared.jobs.models import Batch, Event, ItemError, Job, JobStage
from shared.jobs.records import StoredObject
from shared.jobs.states import ENDED_JOBS
from shared.queues import Stage
from shared.schemas import BATCH_FAILURES, OPENAI_STATUSES, BatchStatus, JobStatus

#: What is wrong with an input file is shown up to so many lines.
MOST_ERRORS = 100

CONTENT_TYPE, PURPOSE = "application/x-ndjson", "batch_output"


@dataclass(frozen=True)
class Summary:
    """How the requests of a batch ended, and the tokens of those that were answered."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


def add(session: Session, job: Job) -> None:
    """The batch of a job that was just created; its request says of which file."""
    id = new_id("batch")
    session.add(Batch(id=id, tenant=job.tenant, job_id=job.id, input_file_id=job.request["input"]["file_id"]))


def find(session: Session, tenant: str, id: str) -> Row[Batch, Job]:
    """A batch and its job. Raises NotFoundError (`batch_not_found`)."""
    row = session.execute(_batches(tenant).where(Batch.id == id)).first()
    if row is None:
        raise NotFoundError(f"There is no batch {id!r}.", code="batch_not_found")
    return row


def find_of_job(session: Session, tenant: str, job_id: str) -> Row[Batch, Job]:
    """The batch that a job answers, and the job."""
    return session.execute(_batches(tenant).where(Batch.job_id == job_id)).one()


def list_batches(session: Session, tenant: str, *, limit: int, after: str | None = None) -> Sequence[Row[Batch, Job]]:
    """Up to `limit` batches with their jobs, newest first, from behind `after` on."""
    query = _batches(tenant).order_by(Batch.id.desc()).limit(limit)
    return session.execute(query if after is None else query.where(Batch.id < after)).all()


def unfinalized(session: Session, *, limit: int) -> Sequence[str]:
    """The batches whose jobs have ended, with nothing under way any more, and whose files are not written."""
    over = Job.status.in_(ENDED_JOBS) & (Job.shards_open == 0) & Job.deleted_at.is_(None)
    query = select(Batch.id).join(Job, Job.id == Batch.job_id).where(Batch.finalized_at.is_(None), over)
    return session.scalars(query.order_by(Job.finished_at).limit(limit)).all()


def finalize(
    session: Session, id: str, summary: Summary, output: StoredObject | None, errors: StoredObject | None
) -> set[str]:
    """Registers the files of a batch. Returns the keys of those objects that a row names now: another process may have
    been quicker, and the tenant may have had the content."""
    batch = session.scalar(select(Batch).where(Batch.id == id, Batch.finalized_at.is_(None)).with_for_update())
    if batch is None:
        return set()
    named = set()
    for stored, kind in ((output, "output"), (errors, "error")):
        if stored is not None:
            file, key = add_file(
                session, tenant=batch.tenant, stored=stored, content_type=CONTENT_TYPE,
                filename=f"{id}_{kind}.jsonl", purpose=PURPOSE,
            )  # fmt: skip
            setattr(batch, f"{kind}_file_id", file.id)
            named.add(key)
    batch.summary, batch.finalized_at = asdict(summary), func.clock_timestamp()
    return named


def snapshots(session: Session, rows: Iterable[Row[Batch, Job]]) -> list[shapes.Batch]:
    """The batches as they are shown."""
    rows = list(rows)
    began: dict[str, int] = defaultdict(int)
    running = select(Event.job_id, Event.created_at).where(
        Event.job_id.in_([row.Job.id for row in rows]), Event.type == "job.running"
    )
    for job_id, created_at in session.execute(running):
        began[job_id] = int(created_at.timestamp())
    said = select(JobStage.job_id, JobStage.items_done).where(
        JobStage.job_id.in_([row.Job.id for row in rows]), JobStage.stage == Stage.GENERATE
    )
    answered = {row.job_id: row.items_done for row in session.execute(said)}
    return [_snapshot(session, row.Batch, row.Job, began.get(row.Job.id), answered.get(row.Job.id)) for row in rows]


def snapshot(session: Session, row: Row[Batch, Job]) -> shapes.Batch:
    """One batch as it is shown, with what this transaction did to it."""
    session.flush()
    session.refresh(row.Job)
    return snapshots(session, [row])[0]


def _snapshot(session: Session, batch: Batch, job: Job, began: int | None, answered: int | None) -> shapes.Batch:
    asked, status = BatchOf.model_validate(job.request["batch"]), status_of(batch, job)
    ended = _seconds(batch.finalized_at)
    return shapes.Batch(
        id=batch.id,
        endpoint=asked.endpoint,
        model=asked.model,
        errors=_errors(session, job) if status is BatchStatus.FAILED else None,
        input_file_id=batch.input_file_id,
        completion_window=asked.completion_window,
        status=status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(job.created_at.timestamp()),
        in_progress_at=None if job.schema.get("batch", {}).get("invalid") else began,
        expires_at=_seconds(job.deadline_at),
        finalizing_at=_seconds(job.finished_at),
        completed_at=ended if status is BatchStatus.COMPLETED else None,
        failed_at=ended if status is BatchStatus.FAILED else None,
        expired_at=ended if status is BatchStatus.EXPIRED else None,
        cancelling_at=_seconds(job.cancel_requested_at),
        cancelled_at=ended if status is BatchStatus.CANCELLED else None,
        request_counts=_counts(batch, job, answered),
        usage=_usage(batch),
        metadata=job.metadata_ or None,
        job_id=job.id,
    )


def status_of(batch: Batch, job: Job) -> BatchStatus:
    """OpenAI's word for where a batch stands."""
    words = OPENAI_STATUSES[JobStatus(job.status)]
    if batch.finalized_at is None:
        return words.batch
    return BATCH_FAILURES.get(_fault(job) or "", words.finished_batch)


def _fault(job: Job) -> str | None:
    return "invalid_batch" if job.schema.get("batch", {}).get("invalid") else job.error_code


def _errors(session: Session, job: Job) -> BatchErrors:
    if _fault(job) != "invalid_batch":
        return BatchErrors(data=[BatchError(code=job.error_code or "", message=job.error_message or "")])
    wrong = select(ItemError).where(ItemError.job_id == job.id).order_by(ItemError.item_index).limit(MOST_ERRORS)
    return BatchErrors(
        data=[BatchError(code=row.code, message=row.message, line=row.item_index + 1) for row in session.scalars(wrong)]
    )


def _counts(batch: Batch, job: Job, answered: int | None) -> RequestCounts:
    """Exact once the files are written; before, items stand for the requests that they belong to: those with vectors,
    or those that a language model has `answered`."""
    total = job.schema.get("batch", {}).get("requests", 0)
    if batch.finalized_at is not None:
        return RequestCounts(total=total, completed=batch.summary["completed"], failed=batch.summary["failed"])
    usable = job.items_succeeded + job.items_partial if answered is None else answered
    done, failed = (total * count // max(job.items_total, 1) for count in (usable, job.items_failed))
    return RequestCounts(total=total, completed=done, failed=failed)


def _usage(batch: Batch) -> BatchUsage | None:
    if batch.finalized_at is None:
        return None
    inputs, outputs = batch.summary["input_tokens"], batch.summary["output_tokens"]
    return BatchUsage(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs)


def _batches(tenant: str) -> Select[Batch, Job]:
    return (
        select(Batch, Job)
        .join(Job, Job.id == Batch.job_id)
        .where(Batch.tenant == tenant, Job.deleted_at.is_(None))
    )  # fmt: skip


def _seconds(time: datetime | None) -> int | None:
    return int(time.timestamp()) if time else None
