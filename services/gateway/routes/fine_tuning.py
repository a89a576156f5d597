"""Fine-tuning jobs in OpenAI's shape, so that its client works: fine_tune jobs of the method `instruction`."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query

from services.gateway import examples, openai_examples, tuning
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.filters import METADATA_FILTER, MetadataFilter
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page, page_behind
from shared.fine_tuning_jobs import FineTuningCheckpoint, FineTuningEvent, FineTuningJob, FineTuningRequest
from shared.jobs import repository
from shared.schemas import Page

router = APIRouter(tags=["fine_tuning"], responses=COMMON_ERRORS)

PATH = "/v1/fine_tuning/jobs"


@router.post(
    PATH, summary="Create a fine-tuning job", responses=answers(openai_examples.FINE_TUNING_JOB, 400, 404, 413, 507)
)
def create_fine_tuning_job(
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[FineTuningRequest, Body(openapi_examples=openai_examples.FINE_TUNING_REQUESTS)],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="repeating a request with it creates no second job"),
    ] = None,
) -> FineTuningJob:
    """Tunes a language model on a file of conversations (LoRA), which may hold pictures and sounds.

    It is a job under `/v1/jobs` like others, of type `fine_tune` and method `instruction`; asked for there, it has more
    settings. Examples that no `validation_file` holds are divided: most train, some validate, and on some the model is
    tested beside the one that it came of. `suffix` is kept, and is not part of the model's id.
    """
    return tuning.create(services, caller.tenant, request, idempotency_key)


@router.get(
    PATH,
    summary="List fine-tuning jobs",
    responses=answers(examples.page_of(openai_examples.FINE_TUNING_JOB)),
    openapi_extra=METADATA_FILTER,
)
def list_fine_tuning_jobs(
    services: ServicesDep, caller: CallerDep, metadata: MetadataFilter, limit: Limit = 20, after: After = None
) -> Page[FineTuningJob]:
    """Those that were created here, newest first."""
    with services.sessions() as session:
        found = tuning.list_jobs(session, caller.tenant, limit=limit + 1, after=after, metadata=metadata)
    return page(found, limit, lambda job: job.id)


@router.get(f"{PATH}/{{id}}", summary="Show a fine-tuning job", responses=answers(openai_examples.FINE_TUNING_JOB, 404))
def get_fine_tuning_job(id: str, services: ServicesDep, caller: CallerDep) -> FineTuningJob:
    """A fine-tuning job and how far it is."""
    with services.sessions() as session:
        return tuning.show(session, tuning.find(session, caller.tenant, id))


@router.post(
    f"{PATH}/{{id}}/cancel", summary="Cancel a fine-tuning job", responses=answers(openai_examples.FINE_TUNING_JOB, 404)
)
def cancel_fine_tuning_job(id: str, services: ServicesDep, caller: CallerDep) -> FineTuningJob:
    """Asks for a job's end: it makes no model any more. An ended one stays so."""
    with services.sessions.begin() as session:
        job = tuning.find(session, caller.tenant, id)
        repository.cancel(session, caller.tenant, id)
        session.flush()
        session.refresh(job)
        return tuning.show(session, job)


@router.get(
    f"{PATH}/{{id}}/events",
    summary="List what happened to a fine-tuning job",
    responses=answers(examples.page_of(openai_examples.FINE_TUNING_EVENT), 404),
)
def list_fine_tuning_events(
    id: str,
    services: ServicesDep,
    caller: CallerDep,
    limit: Limit = 20,
    after: Annotated[
        str | None,
        Query(pattern=r"^ftevent-[0-9]{1,18}$", description="the `last_id` of the part before: entries from behind it"),
    ] = None,
) -> Page[FineTuningEvent]:
    """The job's events, newest first; those of type `metrics` have the losses of an epoch in `data`."""
    number = None if after is None else int(after.removeprefix(tuning.EVENT))
    with services.sessions() as session:
        job = tuning.find(session, caller.tenant, id)
        found = tuning.list_events(session, job, limit=limit + 1, after=number)
    return page(found, limit, lambda event: event.id)


@router.get(
    f"{PATH}/{{id}}/checkpoints",
    summary="List the checkpoints of a fine-tuning job",
    responses=answers(examples.page_of(openai_examples.FINE_TUNING_CHECKPOINT), 404),
)
def list_fine_tuning_checkpoints(
    id: str, services: ServicesDep, caller: CallerDep, limit: Limit = 10, after: After = None
) -> Page[FineTuningCheckpoint]:
    """The model that the job made, the best by validation; before its end there is none that could be used."""
    with services.sessions() as session:
        found = tuning.list_checkpoints(session, tuning.find(session, caller.tenant, id))
    return page_behind(found, limit, after, lambda checkpoint: checkpoint.id)
