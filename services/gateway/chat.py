"""Going on with a conversation: media to vectors by the lanes of their encoders, the rest by the lane of the model."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticSerializationError
from starlette.concurrency import run_in_threadpool

from services.gateway.deps import Services
from services.gateway.interactive import Asking, Contents, check_vectors, encode, locate
from services.gateway.sources import find_encoder, find_speaker
from shared.chat import ChatRequest, Translated, generation_of, translate
from shared.errors import ContextLengthError, InvalidRequestError, TooLargeError
from shared.items import Item
from shared.lanes.client import LaneClient, LaneFailedError
from shared.lanes.messages import Encoded, GenerateItems, Rows, Said, Spoken
from shared.predictions import MOST_ITEMS
from shared.queues import Modality
from shared.settings import Limits

#: What is wrong with a conversation and not with a worker, though only the worker, which has the tokenizer, can tell.
_CALLERS = {
    "context_length_exceeded": ContextLengthError,
    "conversation_impossible": InvalidRequestError,
    "media_differ": InvalidRequestError,
}


async def answer(
    services: Services, lanes: LaneClient, tenant: str, request: ChatRequest
) -> AsyncGenerator[Said | Spoken, None]:
    """The answer, piece by piece: media are encoded first, as they were for the model's training.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (`unsuitable_model`, `unsuitable_media`,
    `context_length_exceeded`, or that of a medium), TooLargeError, and what the lanes raise.
    """
    deadline = time.time() + request.timeout_seconds
    translated = translate(request.messages)
    if len(translated.media) > MOST_ITEMS:
        message = f"The messages hold {len(translated.media)} pictures and sounds; {MOST_ITEMS} are allowed."
        raise TooLargeError(message, param="messages")
    contents, asking = await run_in_threadpool(_look_up, services, tenant, request.model, translated, deadline)
    encoded = await encode(lanes, contents, asking)
    _check_faults(contents)
    payload = GenerateItems(
        conversation=translated.conversation, media=_arrange(encoded, contents), generation=generation_of(request)
    )
    _check_size(payload, services.settings.limits)
    try:
        async with aclosing(lanes.generate(request.model, payload, tenant=tenant, deadline=deadline)) as pieces:
            async for piece in pieces:
                yield piece
    except LaneFailedError as error:
        if error.error_code not in _CALLERS:
            raise
        raise _CALLERS[error.error_code](error.message, code=error.error_code, param="messages") from error


def _look_up(
    services: Services, tenant: str, model: str, translated: Translated, deadline: float
) -> tuple[Contents, Asking]:
    """Where the media are, and who encodes them."""
    with services.sessions() as session:
        speaker = find_speaker(
            session, tenant, model, language_models=services.language_models, catalog=services.catalog
        )  # fmt: skip
        wanted = {modality for modality, _ in translated.media}
        if missing := sorted(wanted - speaker.encoders.keys()):
            takes = ", ".join(["text", *speaker.encoders])
            message = f"The model {model!r} was not trained on {' and '.join(missing)}; it takes {takes}."
            raise InvalidRequestError(message, code="unsuitable_media", param="messages")
        items = [Item.model_validate({"id": str(i), m.value: ref}) for i, (m, ref) in enumerate(translated.media)]
        contents = locate(session, tenant, items, wanted, services.settings)
        specs = {m: find_encoder(session, tenant, services.catalog, speaker.encoders[m]) for m in wanted}
        check_vectors(contents, {modality: spec.dimension for modality, spec in specs.items()}, param="messages")
    return contents, Asking(tenant, deadline, speaker.encoders, speaker.preprocessing)


def _check_size(payload: GenerateItems, limits: Limits) -> None:
    try:
        size = len(payload.model_dump_json(exclude={"media"}))
    except PydanticSerializationError as error:
        message = "The messages hold text that is not valid Unicode (half of a surrogate pair)."
        raise InvalidRequestError(message, code="invalid_unicode", param="messages") from error
    if size > limits.lane_bytes:
        message = f"The messages take {size} bytes; {limits.lane_bytes} are allowed. Shorten them."
        raise TooLargeError(message, param="messages")


def _check_faults(contents: Contents) -> None:
    for faults in contents.faults.values():
        for modality, fault in faults.items():
            message = f"The {modality} in the messages cannot be used: {fault.message}"
            raise InvalidRequestError(message, code=fault.code, param="messages")


def _arrange(encoded: dict[Modality, Encoded], contents: Contents) -> list[Rows]:
    """A vector [1, d] for each marker, in their order."""
    vectors: dict[int, NDArray[np.float32]] = {}
    for modality, answered in encoded.items():
        rows = answered.vectors.array()
        vectors |= {place: rows[i] for i, place in enumerate(contents.found[modality])}
    return [Rows.of(np.atleast_2d(vectors[place])) for place in sorted(vectors)]
