"""What jobs leave behind: events, features, and the errors of items."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse

from services.gateway import events, examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, Services, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers, errors
from services.gateway.paging import page
from services.gateway.results import FeatureSet, as_jsonl, as_npz, as_parquet
from services.gateway.streaming import begun
from shared.errors import ConflictError, NotFoundError
from shared.jobs import outputs, repository
from shared.schemas import ItemErrorEntry, JobEvent, JobStatus, JobType, Page, Part

router = APIRouter(tags=["results"], responses=COMMON_ERRORS)


class ResultFormat(StrEnum):
    """How a feature set can be had as one file."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    NPZ = "npz"


_MEDIA_TYPES = {
    ResultFormat.JSONL: "application/x-ndjson",
    ResultFormat.PARQUET: "application/vnd.apache.parquet",
    ResultFormat.NPZ: "application/x-npz",
}


#: What jobs make that have results of their own only if they were given items.
_READERS = {JobType.FINE_TUNE: "a model", JobType.INDEX: "an index"}

#: As far as Postgres counts.
_LARGEST_ID = 2**63 - 1

#: One server-sent event; there is no media type in OpenAPI for a stream of them.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


@router.get(
    "/v1/jobs/{id}/events",
    summary="Follow a job",
    response_model=Page[JobEvent],
    responses={
        200: {
            "description": "Server-sent events; a list of those so far if JSON is asked for",
            "content": {
                "text/event-stream": {"schema": _EVENT, "example": examples.EVENT_STREAM},
                "application/json": {"example": examples.page_of(examples.EVENT)},
            },
        },
        204: {"description": "The job has ended, and nothing came after `Last-Event-ID`: do not reconnect"},
        **errors(404),
    },
)
async def follow_job(
    id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    stream: Annotated[bool | None, Query(description="false: a JSON list of the events so far")] = None,
    limit: Limit = 1000,
    after: Annotated[int, Query(ge=0, le=_LARGEST_ID, description="the `last_id` of the part before")] = 0,
    last_event_id: Annotated[int, Header(ge=0, le=_LARGEST_ID, description="resumes a stream behind this event")] = 0,
) -> Response | Page[JobEvent]:
    """The job's events as they happen, each as a JobEvent, until it has ended. In between, about each second, an event
    `progress` with `status`, `items` and `stages`, which has no id on the wire, since nothing resumes from it."""
    begin = last_event_id or after
    accepted = request.headers.get("accept", "")
    if stream is False or (stream is None and "application/json" in accepted and "event-stream" not in accepted):
        return await run_in_threadpool(_list_events, services, caller.tenant, id, begin, limit)
    first = await run_in_threadpool(events.look, services, caller.tenant, id, begin)
    if first.over and not first.events:
        return Response(status_code=204)
    leaving = anyio.Event()
    content = events.stream(services, caller.tenant, id, begin, first, leaving)
    return EventSourceResponse(content, sep="\n", shutdown_event=leaving, shutdown_grace_period=events.LEAVE_SECONDS)


@router.get(
    "/v1/jobs/{id}/results",
    summary="Read the features",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The feature set, or the predictions, as one file in the order of the items",
            "content": {
                "application/x-ndjson": {"schema": {"type": "string"}, "example": examples.RESULT_LINE},
                "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
                "application/x-npz": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **errors(404, 409, 413),
    },
)
def read_results(
    id: str, services: ServicesDep, caller: CallerDep, format: ResultFormat = ResultFormat.JSONL
) -> StreamingResponse:
    """The features of a job that succeeded, or its predictions."""
    features = FeatureSet(services.store, _parts(services, caller.tenant, id))
    writers: dict[ResultFormat, Callable[[], Iterator[bytes]]] = {
        ResultFormat.JSONL: lambda: as_jsonl(features),
        ResultFormat.PARQUET: lambda: as_parquet(features),
        ResultFormat.NPZ: lambda: as_npz(features, services.settings.limits.npz_bytes),
    }
    headers = {"Content-Disposition": f'attachment; filename="{id}.{format}"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(begun(writers[format]()), media_type=_MEDIA_TYPES[format], headers=headers)


@router.get(
    "/v1/jobs/{id}/results/parts",
    summary="List the parts of the features",
    responses=answers(examples.page_of(examples.PART), 404, 409),
)
def list_parts(
    id: str,
    services: ServicesDep,
    caller: CallerDep,
    limit: Limit = 1000,
    after: Annotated[int, Query(ge=-1, le=_LARGEST_ID, description="the `last_id` of the part before")] = -1,
) -> Page[Part]:
    """The Parquet parts in the order of the items, each with its sha256 and a link that is good for an hour."""
    found = _parts(services, caller.tenant, id, limit=limit + 1, after=after)
    linked = [part.model_copy(update={"url": services.store.presign(part.key)}) for part in found]
    return page(linked, limit, lambda part: part.index)


@router.get(
    "/v1/jobs/{id}/errors",
    summary="List the errors of items",
    responses=answers(examples.page_of(examples.ITEM_ERROR), 404),
)
def list_errors(
    id: str, services: ServicesDep, caller: CallerDep, limit: Limit = 100, after: After = None
) -> Page[ItemErrorEntry]:
    """What could not be used of a job's items, in their order; of a job that runs, what is known so far."""
    with services.sessions() as session:
        repository.find(session, caller.tenant, id)
        found = outputs.item_errors(session, id, limit=limit + 1, after=after)
    return page(found, limit, lambda entry: entry.id)


def _list_events(services: Services, tenant: str, id: str, after: int, limit: int) -> Page[JobEvent]:
    with services.sessions() as session:
        repository.find(session, tenant, id)
        found = outputs.events(session, id, after=after, limit=limit + 1)
    return page(found, limit, lambda event: event.id)


def _parts(services: Services, tenant: str, id: str, *, limit: int | None = None, after: int = -1) -> list[Part]:
    with services.sessions() as session:
        job = repository.find(session, tenant, id)
        if job.status != JobStatus.SUCCEEDED:
            message = f"The job {id!r} is {job.status}; only a job that succeeded has results."
            raise ConflictError(message, code="job_not_finished")
        if job.type in _READERS and job.request["features"] is not None:
            message = f"The job {id!r} made {_READERS[JobType(job.type)]} of another job's features, and none itself."
            raise NotFoundError(message, code="no_results")
        return outputs.parts(session, id, stage=outputs.result_stage(job), limit=limit, after=after)
