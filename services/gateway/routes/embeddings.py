"""Embeddings: the vectors of a few inputs, at once. The shape is OpenAI's, so that its client works."""

from typing import Annotated

from fastapi import APIRouter, Body, Request

from services.gateway import openai_examples
from services.gateway.auth import CallerDep
from services.gateway.deps import ServicesDep
from services.gateway.embedding import embed
from services.gateway.openapi import COMMON_ERRORS, answers
from shared.embeddings import EmbeddingList, EmbeddingRequest

router = APIRouter(tags=["embeddings"], responses=COMMON_ERRORS)


@router.post(
    "/v1/embeddings",
    summary="Embed a few inputs at once",
    responses=answers(openai_examples.EMBEDDINGS, 400, 404, 413, 429, 504),
)
async def create_embeddings(
    http_request: Request,
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[EmbeddingRequest, Body(openapi_examples=openai_examples.EMBEDDING_REQUESTS)],
) -> EmbeddingList:
    """The vectors that a features job would make of the same inputs with this encoder.

    As OpenAI's, and beyond it pictures and sounds: `{"image": …}` and `{"audio": …}` in the place of a text, each a
    `data:` URI (of 1 MiB together) or the id of an uploaded file. All inputs are of the encoder's modality; one that
    cannot be read is an error of the request. `user` has no effect. More inputs are a batch, or a job of type
    `features`.
    """
    return await embed(services, http_request.app.state.lanes, caller.tenant, request)
