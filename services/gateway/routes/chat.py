"""Chat: a conversation goes on, in OpenAI's shape."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Body, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.chat import answer
from services.gateway.deps import ServicesDep
from services.gateway.errors import error_body
from services.gateway.openapi import COMMON_ERRORS, answers
from shared.chat import AnswerMessage, ChatChunk, ChatCompletion, ChatRequest, Choice, ChunkChoice, Delta, Usage
from shared.errors import TriviumError
from shared.lanes.messages import Said, Spoken

router = APIRouter(tags=["chat"], responses=COMMON_ERRORS)

T = TypeVar("T")
_Answer = AsyncGenerator[Said | Spoken, None]

#: A server that shuts down gives answers this long to end.
_LEAVE_SECONDS = 10.0

_STREAM = {"text/event-stream": {"schema": {"type": "string"}, "example": examples.CHAT_STREAM}}


@router.post(
    "/v1/chat/completions",
    summary="Go on with a conversation",
    response_model=ChatCompletion,
    responses=answers(examples.CHAT, 400, 404, 413, 429, 504, also=_STREAM),
)
async def create_chat_completion(
    http_request: Request,
    services: ServicesDep,
    caller: CallerDep,
    request: Annotated[ChatRequest, Body(openapi_examples=examples.CHAT_REQUESTS)],
) -> ChatCompletion | Response:
    """What a language model answers: one of the catalogue, or one that a fine_tune job tuned.

    Of those that were tuned with pictures or sounds, messages may hold these: `data:` URIs, of 1 MiB together, or the
    ids of uploaded files; their vectors may take 64 MiB (image tokens of large models are megabytes). With `stream`,
    the answer comes as server-sent events, piece by piece. The first request for a model that no worker has in memory
    waits until it is loaded; 504 if the answer does not begin in time. A caller who goes away stops the answer.
    """
    pieces = answer(services, http_request.app.state.lanes, caller.tenant, request)
    if not request.stream:
        return await _while_connected(http_request, _whole(pieces, request.model))
    first = await _while_connected(http_request, anext(pieces))  # an error before it still has a status of its own
    return EventSourceResponse(
        _events(first, pieces, request), sep="\n", shutdown_event=anyio.Event(), shutdown_grace_period=_LEAVE_SECONDS
    )


async def _whole(pieces: _Answer, model: str) -> ChatCompletion:
    texts: list[str] = []
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Spoken):
                choice = Choice(message=AnswerMessage(content="".join(texts)), finish_reason=piece.finish_reason)
                return ChatCompletion(model=model, choices=[choice], usage=_usage(piece))
            texts.append(piece.text)
    raise AssertionError("an answer has an end")


async def _events(first: Said | Spoken, rest: _Answer, request: ChatRequest) -> AsyncIterator[ServerSentEvent]:
    """Chunks as OpenAI sends them. An error on the way is the last event, which its clients raise."""
    shape = ChatChunk(model=request.model, choices=[])

    def chunk(**fields: Any) -> ServerSentEvent:
        return ServerSentEvent(shape.model_copy(update=fields).model_dump_json())

    def choice(delta: Delta, piece: Said | Spoken | None = None) -> ServerSentEvent:
        reason = piece.finish_reason if isinstance(piece, Spoken) else None
        return chunk(choices=[ChunkChoice(index=0, delta=delta, finish_reason=reason)])

    async with aclosing(rest):
        yield choice(Delta(role="assistant", content=""))
        try:
            async for piece in _chained(first, rest):
                yield choice(Delta(content=piece.text) if isinstance(piece, Said) else Delta(), piece)
                if isinstance(piece, Spoken):
                    if request.stream_options is not None and request.stream_options.include_usage:
                        yield chunk(usage=_usage(piece))
                    break
        except TriviumError as error:
            yield ServerSentEvent(error_body(error).model_dump_json())
        yield ServerSentEvent("[DONE]")


async def _chained(first: Said | Spoken, rest: _Answer) -> AsyncIterator[Said | Spoken]:
    yield first
    async for piece in rest:
        yield piece


def _usage(end: Spoken) -> Usage:
    return Usage.of(end.prompt_tokens, end.completion_tokens)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """What comes of `work`, which is cancelled if the caller goes away. Raises ClientDisconnect."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = [working, asyncio.ensure_future(leaves())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
