"""The vectors of a few texts, pictures or sounds, while the caller waits: the lane of the encoder."""

import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from services.gateway.deps import Services
from services.gateway.interactive import Asking, Contents, check_vectors, encode, locate
from services.gateway.sources import find_encoder
from shared import embeddings
from shared.embeddings import EmbeddingList, EmbeddingRequest
from shared.errors import InvalidRequestError
from shared.lanes.client import LaneClient
from shared.preprocessing import Preprocessing
from shared.queues import Modality

#: OpenAI's requests say nothing of how long they may take.
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class _Asked:
    """A request with what the catalogue and the tables say of it."""

    modality: Modality
    asking: Asking
    contents: Contents


async def embed(services: Services, lanes: LaneClient, tenant: str, request: EmbeddingRequest) -> EmbeddingList:
    """Encodes the inputs: all of them, or none.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (an input that cannot be used has its own code),
    TooLargeError, and what the lanes raise.
    """
    deadline = time.time() + WAIT_SECONDS
    asked = await run_in_threadpool(_look_up, services, tenant, request, deadline)
    _refuse_faults(asked)
    encoded = (await encode(lanes, asked.contents, asked.asking))[asked.modality]
    _refuse_faults(asked)
    return embeddings.answer(request, encoded.vectors.array(), encoded.tokens)


def _refuse_faults(asked: _Asked) -> None:
    for place, faults in sorted(asked.contents.faults.items()):
        fault = faults[asked.modality]
        raise InvalidRequestError(fault.message, code=fault.code, param=f"input.{place}")


def _look_up(services: Services, tenant: str, request: EmbeddingRequest, deadline: float) -> _Asked:
    with services.sessions() as session:
        spec = find_encoder(session, tenant, services.catalog, request.model)
        request.check_modality(spec.modality)
        request.check_dimensions(spec.dimension, may_be_cut=bool(spec.options.get("matryoshka")))
        contents = locate(session, tenant, request.items(), [spec.modality], services.settings, param="input")
        check_vectors(contents, {spec.modality: spec.dimension}, param="input")
    asking = Asking(tenant, deadline, {spec.modality: request.model}, Preprocessing().model_dump(mode="json"))
    return _Asked(spec.modality, asking, contents)
