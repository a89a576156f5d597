"""What is near an item, while the caller waits: the modalities' lanes, that of the index's model, then the index."""

import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from services.gateway.deps import Services
from services.gateway.interactive import Asking, Contents, encode, locate
from services.gateway.sources import find_encoders
from shared.errors import DeadlineError, InvalidRequestError
from shared.items import Item
from shared.jobs import registry
from shared.jobs.search import find_index, nearest, vector_of
from shared.lanes.client import LaneClient
from shared.lanes.messages import FuseRows
from shared.queues import Modality
from shared.search import SearchRequest, SearchResult, SearchResults


@dataclass(frozen=True)
class _Asked:
    """A request with what the tables say of it: the index's model, which modalities are looked at, and either the
    vector to search by or what has to be encoded."""

    model: str
    modalities: list[Modality]
    asking: Asking
    vector: list[float] | None
    contents: Contents


async def search(services: Services, lanes: LaneClient, tenant: str, request: SearchRequest) -> SearchResults:
    """Encodes what is searched by, projects it into the space of the index, and finds what is near.

    Raises NotFoundError (`index_not_found`, `item_not_found`), ConflictError, InvalidRequestError (`not_an_index`,
    `no_such_modality`, or what is wrong with a picture or sound), TooLargeError, and what the lanes raise.
    """
    deadline = time.time() + request.timeout_seconds
    asked = await run_in_threadpool(_look_up, services, tenant, request, deadline)
    vector = asked.vector or await _vector(lanes, asked)
    found = await run_in_threadpool(_find, services, request, asked, vector)
    return SearchResults(index=request.index, data=found)


def _look_up(services: Services, tenant: str, request: SearchRequest, deadline: float) -> _Asked:
    query = request.query
    with services.sessions() as session:
        job = find_index(session, tenant, request.index)
        model = registry.find_model(session, tenant, job.request["model"], param="index")
        encoders = find_encoders(model, services.catalog)
        for modality in query.modalities:
            _check(modality, encoders, f"query.{modality}")
        if request.modality is not None:
            _check(request.modality, encoders, "modality")
        asking = Asking(tenant, deadline, encoders, model.spec["preprocessing"])
        wanted = list(encoders) if request.modality is None else [request.modality]
        if query.id is not None:
            vector = vector_of(session, job.id, query.id)
            return _Asked(model.id, wanted, asking, vector, Contents({}))
        item = Item(id="query", text=query.text, image=query.image, audio=query.audio)
        contents = locate(session, tenant, [item], query.modalities, services.settings)
        return _Asked(model.id, wanted, asking, None, contents)


def _check(modality: Modality, encoders: dict[Modality, str], param: str) -> None:
    if modality not in encoders:
        message = f"The index knows {' and '.join(m.value for m in encoders)}; it has no {modality}."
        raise InvalidRequestError(message, code="no_such_modality", param=param)


async def _vector(lanes: LaneClient, asked: _Asked) -> list[float]:
    """Where the query is in the space of the index. Nothing of it is done without: half a question is another one."""
    encoded = await encode(lanes, asked.contents, asked.asking)
    for modality, fault in asked.contents.faults.get(0, {}).items():
        raise InvalidRequestError(fault.message, code=fault.code, param=f"query.{modality}")
    rows = FuseRows(vectors={m: answer.vectors for m, answer in encoded.items()}, mask={m: [True] for m in encoded})
    fused = await lanes.fuse(asked.model, rows, tenant=asked.asking.tenant, deadline=asked.asking.deadline)
    vector: list[float] = fused.vectors.array()[0].tolist()
    return vector


def _find(services: Services, request: SearchRequest, asked: _Asked, vector: list[float]) -> list[SearchResult]:
    left = asked.asking.deadline - time.time()
    if left <= 0:
        raise DeadlineError("No time was left for the search; give it more, or try again.")
    with services.sessions() as session:
        return nearest(
            session,
            request.index,
            vector,
            asked.modalities,
            request.filter,
            limit=request.limit,
            but=request.query.id,
            exact=request.exact,
            seconds=left,
        )
