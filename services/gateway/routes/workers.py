"""Workers: the processes that were heard from of late."""

from fastapi import APIRouter

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page_behind
from shared.jobs.registry import live_workers
from shared.schemas import Page, WorkerEntry

router = APIRouter(tags=["workers"], responses=COMMON_ERRORS)


@router.get("/v1/workers", summary="List workers", responses=answers(examples.page_of(examples.WORKER)))
def list_workers(
    services: ServicesDep, caller: CallerDep, limit: Limit = 1000, after: After = None
) -> Page[WorkerEntry]:
    """The workers of all pools seen in the last 30 s; of the shards they hold, only the tenant's own are named."""
    with services.sessions() as session:
        found = live_workers(session, caller.tenant)
    return page_behind(found, limit, after, lambda worker: worker.id)
