"""Jobs: created, listed, shown, cancelled, retried, deleted."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Response

from services.gateway import examples
from services.gateway.admission import timeout_of
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.filters import METADATA_FILTER, MetadataFilter
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page
from services.gateway.submission import submit
from shared.jobs import repository
from shared.jobs.repository import JobFilter
from shared.jobs.retry import retry
from shared.requests import JobRequest
from shared.schemas import Deleted, Job, JobStatus, JobType, Page

router = APIRouter(tags=["jobs"], responses=COMMON_ERRORS)


@router.post(
    "/v1/jobs",
    summary="Create a job",
    status_code=202,
    responses={
        **answers(examples.JOB, 400, 404, 413, 507, status=202, words="Accepted; it cannot be lost any more"),
        **answers(examples.JOB, words="The job that an earlier request with this Idempotency-Key created"),
    },
)
def create_job(
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[JobRequest, Body(openapi_examples=examples.JOB_REQUESTS)],
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="repeating a request with it creates no second job"),
    ] = None,
) -> Job:
    """Accepts items, a manifest of them, or the feature set of an earlier job: to be turned into features
    (`features`), to train a model on (`fine_tune`), to apply a model to (`predict`), or to be searched (`index`)."""
    job, created = submit(services, caller.tenant, request, idempotency_key)
    if not created:
        response.status_code = 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get(
    "/v1/jobs",
    summary="List jobs",
    responses=answers(examples.page_of(examples.JOB)),
    openapi_extra=METADATA_FILTER,
)
def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    metadata: MetadataFilter,
    limit: Limit = 20,
    after: After = None,
    status: Annotated[list[JobStatus] | None, Query(description="may be repeated")] = None,
    type: JobType | None = None,
) -> Page[Job]:
    """The tenant's jobs, newest first; those that match all filters."""
    wanted = JobFilter(statuses=status or (), type=type, metadata=metadata)
    with services.sessions() as session:
        found = repository.list_jobs(session, caller.tenant, wanted, limit=limit + 1, after=after)
        return page(repository.snapshots(session, found), limit, lambda job: job.id)


@router.get("/v1/jobs/{id}", summary="Show a job", responses=answers(examples.JOB, 404))
def get_job(id: str, services: ServicesDep, caller: CallerDep) -> Job:
    """A job and how far it is."""
    with services.sessions() as session:
        return repository.snapshots(session, [repository.find(session, caller.tenant, id)])[0]


@router.post("/v1/jobs/{id}/cancel", summary="Cancel a job", responses=answers(examples.JOB, 404))
def cancel_job(id: str, services: ServicesDep, caller: CallerDep) -> Job:
    """Asks for a job's end: what waits is dropped now, what runs stops at its next batch. An ended one stays so."""
    with services.sessions.begin() as session:
        return repository.snapshot(session, repository.cancel(session, caller.tenant, id))


@router.post("/v1/jobs/{id}/retry", summary="Retry failed items", responses=answers(examples.JOB, 404, 409))
def retry_job(id: str, services: ServicesDep, caller: CallerDep) -> Job:
    """Tries again, in place, what failed of an ended job; what succeeded stays. Its time begins anew.

    409 while a job that has not ended reads its feature set, and if the one that it reads itself has changed since."""
    with services.sessions.begin() as session:
        job = repository.find(session, caller.tenant, id, lock=True)
        retry(session, job, timeout_of(job.request.get("timeout_seconds"), services.settings.limits))
        shown, queues = repository.snapshot(session, job), repository.ready_queues(session, id)
    services.hint(queues)
    return shown


@router.delete("/v1/jobs/{id}", summary="Delete a job", responses=answers(examples.deleted("job", "job-…"), 404, 409))
def delete_job(id: str, services: ServicesDep, caller: CallerDep) -> Deleted:
    """Deletes an ended job with its results and the models that it made."""
    with services.sessions.begin() as session:
        repository.delete(session, caller.tenant, id)
    return Deleted(id=id, object="job")
