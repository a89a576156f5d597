"""Fine-tuning in OpenAI's shape: its requests as fine_tune jobs, and these jobs in its words."""

from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from services.gateway.deps import Services
from services.gateway.sources import check_language_model
from services.gateway.submission import submit
from shared.errors import NotFoundError, blaming
from shared.fine_tuning import LANGUAGE_METHODS
from shared.fine_tuning_jobs import (
    LEARNING_RATE,
    AskedTuning,
    CheckpointMetrics,
    FineTuningCheckpoint,
    FineTuningError,
    FineTuningEvent,
    FineTuningJob,
    FineTuningRequest,
    OpenAITuning,
    Supervised,
    TuningMethod,
)
from shared.jobs import repository
from shared.jobs.files import get_file
from shared.jobs.models import Event, Job, Model
from shared.language_tuning import LanguageTraining
from shared.schemas import OPENAI_STATUSES, Input, JobStatus, JobType

#: How the ids of events begin.
EVENT = "ftevent-"

#: Events that say that something went wrong; whatever else is `info`.
_LEVELS: dict[str, Literal["warn", "error"]] = {
    "shard.failed": "error",
    "job.failed": "error",
    "shard.retried": "warn",
    "shard.rescued": "warn",
    "training.warning": "warn",
    "training.error": "error",
}

#: How events say what happened; others are named by their type.
_WORDS = {
    "job.queued": "Fine-tuning job created",
    "job.planning": "Reading the files",
    "job.running": "Fine-tuning job started",
    "job.succeeded": "The job has successfully completed",
    "job.cancelling": "Cancelling",
    "job.cancelled": "Fine-tuning job cancelled",
}


def create(services: Services, tenant: str, request: FineTuningRequest, idempotency_key: str | None) -> FineTuningJob:
    """Creates the job, or finds the one that an earlier request with this key created.

    Raises NotFoundError (`file_not_found`, `model_not_found`), InvalidRequestError, and what `submit` raises.
    """
    with services.sessions() as session:
        _check(session, services, tenant, request)
    job, _ = submit(services, tenant, _as_job(request), idempotency_key)
    with services.sessions() as session:
        return show(session, repository.find(session, tenant, job.id))


def find(session: Session, tenant: str, id: str) -> Job:
    """A fine-tuning job that was asked for in OpenAI's shape. Raises NotFoundError (`fine_tuning_job_not_found`)."""
    job = session.scalar(select(Job).where(Job.id == id, *_asked_here(tenant)))
    if job is None:
        raise NotFoundError(f"There is no fine-tuning job {id!r}.", code="fine_tuning_job_not_found")
    return job


def list_jobs(
    session: Session, tenant: str, *, limit: int, after: str | None, metadata: dict[str, str]
) -> list[FineTuningJob]:  # fmt: skip
    """Up to `limit` of them, newest first, from behind `after` on."""
    query = select(Job).where(*_asked_here(tenant)).order_by(Job.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Job.id < after)
    if metadata:
        query = query.where(Job.metadata_.contains(metadata))
    return [show(session, job) for job in session.scalars(query)]


def show(session: Session, job: Job) -> FineTuningJob:
    """A job in OpenAI's words."""
    asked = AskedTuning.model_validate(job.request["openai"])
    made = _model_of(session, job)
    tuned = {} if made is None else made.spec.get("fine_tuned", {})
    return FineTuningJob(
        id=job.id,
        model=job.request["language_model"],
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        status=OPENAI_STATUSES[JobStatus(job.status)].fine_tuning,
        fine_tuned_model=None if made is None else made.id,
        error=FineTuningError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
        hyperparameters=asked.hyperparameters,
        method=TuningMethod(supervised=Supervised(hyperparameters=asked.hyperparameters)),
        training_file=job.request["input"]["file_id"],
        validation_file=asked.validation_file,
        result_files=[],
        seed=job.request["training"]["seed"],
        trained_tokens=tuned.get("metrics", {}).get("trained_tokens"),
        estimated_finish=None,
        organization_id=job.tenant,
        integrations=[],
        user_provided_suffix=asked.suffix,
        metadata=job.metadata_ or None,
    )


def list_events(session: Session, job: Job, *, limit: int, after: int | None) -> list[FineTuningEvent]:
    """Up to `limit` events of a job, newest first, from behind the one with the number `after` on."""
    query = select(Event).where(Event.job_id == job.id).order_by(Event.id.desc()).limit(limit)
    return [_event(row) for row in session.scalars(query if after is None else query.where(Event.id < after))]


def list_checkpoints(session: Session, job: Job) -> list[FineTuningCheckpoint]:
    """What can be used of a job's training: the model that it made, once it has."""
    made = _model_of(session, job)
    if made is None:
        return []
    metrics = made.spec.get("fine_tuned", {}).get("metrics", {})
    step = int(metrics.get("steps", 0))
    return [
        FineTuningCheckpoint(
            id=made.id.replace("model-", "ftckpt-"),
            created_at=int(made.created_at.timestamp()),
            fine_tuned_model_checkpoint=made.id,
            fine_tuning_job_id=job.id,
            metrics=CheckpointMetrics(step=step, full_valid_loss=metrics.get("validation_loss")),
            step_number=step,
        )
    ]


def _check(session: Session, services: Services, tenant: str, request: FineTuningRequest) -> None:
    """What OpenAI's names for its fields have to be said of. Raises NotFoundError, InvalidRequestError."""
    for param in ("training_file", "validation_file"):
        if (id := getattr(request, param)) is not None:
            with blaming(param):
                get_file(session, tenant, id)
    with blaming("model"):
        check_language_model(session, tenant, services.language_models, request.model)


def _as_job(request: FineTuningRequest) -> OpenAITuning:
    hyper = request.chosen()
    given: dict[str, Any] = {"seed": request.seed, "epochs": hyper.n_epochs, "batch_size": hyper.batch_size}
    if hyper.learning_rate_multiplier != "auto":
        given["learning_rate"] = LEARNING_RATE * hyper.learning_rate_multiplier
    return OpenAITuning(
        type=JobType.FINE_TUNE,
        method="instruction",
        language_model=request.model,
        input=Input(file_id=request.training_file),
        training=LanguageTraining(**{name: value for name, value in given.items() if value not in {None, "auto"}}),
        metadata=request.metadata or {},
        openai=AskedTuning(validation_file=request.validation_file, suffix=request.suffix, hyperparameters=hyper),
    )


def _asked_here(tenant: str) -> Iterable[ColumnElement[bool]]:
    return (
        Job.tenant == tenant,
        Job.type == JobType.FINE_TUNE,
        Job.deleted_at.is_(None),
        Job.request["openai"].is_not(None),
    )


def _model_of(session: Session, job: Job) -> Model | None:
    """What the job made of its language model, once it has succeeded."""
    if job.status != JobStatus.SUCCEEDED:
        return None
    return session.scalar(select(Model).where(Model.job_id == job.id, Model.kind.in_(LANGUAGE_METHODS)))


def _event(row: Event) -> FineTuningEvent:
    said = row.data.get("message")
    return FineTuningEvent(
        id=f"{EVENT}{row.id}",
        created_at=int(row.created_at.timestamp()),
        level=_LEVELS.get(row.type, "info"),
        message=said if isinstance(said, str) and said else _WORDS.get(row.type, row.type),
        type="metrics" if row.type == "training.epoch" else "message",
        data={"event": row.type, **row.data},
    )
