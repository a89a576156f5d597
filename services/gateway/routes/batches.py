"""Batches: files of requests, answered by jobs. The shapes are OpenAI's, so that its client works."""

from typing import Annotated

from fastapi import APIRouter, Body, Header

from services.gateway import batching, examples, openai_examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page
from shared.batches import Batch, BatchRequest
from shared.jobs import batches, repository
from shared.schemas import Page

router = APIRouter(tags=["batches"], responses=COMMON_ERRORS)


@router.post("/v1/batches", summary="Create a batch", responses=answers(openai_examples.BATCH, 400, 404, 413, 507))
def create_batch(
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[BatchRequest, Body(openapi_examples=openai_examples.BATCH_REQUESTS)],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="repeating a request with it creates no second batch"),
    ] = None,
) -> Batch:
    """Answers the requests of an uploaded file, as the endpoint would answer each, by a job that is never lost.

    One line that is wrong (no JSON, a `custom_id` twice, another `url` or model than the rest) fails the whole batch,
    and `errors` says which; a request whose body is wrong is an error of its own, in the error file. What a batch that
    was cancelled, or whose window is over, had answered by then is in its output file.
    """
    return batching.create(services, caller.tenant, request, idempotency_key)


@router.get("/v1/batches", summary="List batches", responses=answers(examples.page_of(openai_examples.BATCH)))
def list_batches(services: ServicesDep, caller: CallerDep, limit: Limit = 20, after: After = None) -> Page[Batch]:
    """The tenant's batches, newest first."""
    with services.sessions() as session:
        found = batches.list_batches(session, caller.tenant, limit=limit + 1, after=after)
        return page(batches.snapshots(session, found), limit, lambda batch: batch.id)


@router.get("/v1/batches/{id}", summary="Show a batch", responses=answers(openai_examples.BATCH, 404))
def get_batch(id: str, services: ServicesDep, caller: CallerDep) -> Batch:
    """A batch and how far it is."""
    with services.sessions() as session:
        return batches.snapshot(session, batches.find(session, caller.tenant, id))


@router.post("/v1/batches/{id}/cancel", summary="Cancel a batch", responses=answers(openai_examples.BATCH, 404))
def cancel_batch(id: str, services: ServicesDep, caller: CallerDep) -> Batch:
    """Asks for a batch's end; what it had answered is in its output file then. An ended one stays so."""
    with services.sessions.begin() as session:
        row = batches.find(session, caller.tenant, id)
        repository.cancel(session, caller.tenant, row.Job.id)
        return batches.snapshot(session, row)
