"""Planning a small inline job where it is accepted."""

from uuid import uuid4

from shared.catalog import Catalog
from shared.jobs.records import Plan
from shared.planning.media import Finder
from shared.planning.planner import Place, PlanRequest, Source, plan_rows
from shared.planning.rows import Row
from shared.schemas import ItemSource
from shared.settings import Fetching, Limits
from shared.storage.objects import ObjectStore


def plan_inline(
    store: ObjectStore,
    job_id: str,
    request: ItemSource,
    *,
    catalog: Catalog,
    limits: Limits,
    fetching: Fetching,
    resolve_files: Finder,
) -> Plan:
    """Plans the items in a request. The slices are written when this returns; call `lay_out` with the plan.

    `resolve_files` finds uploaded files of the job's tenant by id. Raises JobError, UnavailableError.
    """
    rows = (Row(line, item.model_dump(exclude_none=True)) for line, item in enumerate(request.items or (), 1))
    return plan_rows(
        Source(rows),
        PlanRequest.of(request.model_dump(exclude={"items"})),
        Place(store, job_id, uuid4()),
        catalog=catalog,
        limits=limits,
        fetching=fetching,
        resolve_files=resolve_files,
    )
