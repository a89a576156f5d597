"""Search: items of an index that are near another one."""

from typing import Annotated

from fastapi import APIRouter, Body, Request

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.searching import search
from shared.search import SearchRequest, SearchResults

router = APIRouter(tags=["search"], responses=COMMON_ERRORS)


@router.post(
    "/v1/search",
    summary="Find what is near an item",
    responses=answers(examples.SEARCH_RESULTS, 400, 404, 409, 413, 504),
)
async def create_search(
    http_request: Request,
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[SearchRequest, Body(openapi_examples=examples.SEARCH_REQUESTS)],
) -> SearchResults:
    """Finds the items of an index that are nearest to a text, picture or sound, or to an item of the index, in the
    space of the index's model: by `modality` pictures for a sound, say. Without it an item counts by whichever of its
    modalities is nearest, and those of the query's own kind come first.

    A picture or sound is a `data:` URI, of 1 MiB at most, or the id of an uploaded file. Large indexes are followed,
    not read through: nearly all of the nearest are found; `exact` finds all, in more time.
    """
    return await search(services, http_request.app.state.lanes, caller.tenant, request)
