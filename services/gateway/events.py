"""A job's events as they happen (server-sent events, WHATWG HTML §9.2), with its progress in between."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from sqlalchemy.exc import DBAPIError
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from services.gateway.deps import Services
from shared.db import is_outage
from shared.errors import NotFoundError
from shared.jobs import outputs, repository
from shared.jobs.states import ENDED_JOBS
from shared.observability import get_logger
from shared.schemas import JobEvent

log = get_logger(__name__)

_LOOK_SECONDS = 1.0

#: A server that shuts down gives its streams this long to end as they should.
LEAVE_SECONDS = 5.0

_AT_ONCE = 500


@dataclass(frozen=True)
class Look:
    """What one look at a job found: new events, where it stands, and whether no more will come."""

    events: list[JobEvent]
    progress: dict[str, Any]
    over: bool


def look(services: Services, tenant: str, job_id: str, after: int) -> Look:
    """The job's events behind `after`, and its progress. Raises NotFoundError."""
    with services.sessions() as session:
        job = repository.find(session, tenant, job_id)
        # The status is read before the events, and its last event is written with it: nothing is missed at the end.
        ended = job.status in ENDED_JOBS
        [shown] = repository.snapshots(session, [job])
        found = outputs.events(session, job_id, after=after, limit=_AT_ONCE)
    progress = shown.model_dump(mode="json", include={"status", "items", "stages"})
    return Look(found, progress, over=ended and len(found) < _AT_ONCE)


async def stream(
    services: Services, tenant: str, job_id: str, after: int, first: Look, leaving: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    """The events behind `after`, of which `first` holds the first, until the job has ended, or the server is `leaving`:
    callers resume at another. About each second the job's progress, if it changed, as an event without an id, since
    that cannot be resumed from."""
    seen: Look | None = first
    shown: dict[str, Any] = {}
    while True:
        if seen is not None:
            for event in seen.events:
                after = int(event.id)
                yield ServerSentEvent(event.model_dump_json(), event=event.type, id=event.id)
            if seen.over:
                return
            if seen.progress != shown:
                shown = seen.progress
                event = JobEvent(id=str(after), type="progress", created_at=time.time(), data=shown)
                yield ServerSentEvent(event.model_dump_json(), event=event.type)
        with anyio.move_on_after(_LOOK_SECONDS):
            await leaving.wait()
            return
        try:
            seen = await run_in_threadpool(look, services, tenant, job_id, after)
        except NotFoundError:
            return  # deleted
        except DBAPIError as error:
            if not is_outage(error):
                raise
            log.warning("events wait for Postgres", error=str(error))
            seen = None
