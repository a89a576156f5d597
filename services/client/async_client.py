"""The client for asyncio: `client.py` with awaits."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, closing
from typing import Any, ParamSpec, Self, TypeVar

import httpx
from httpx_sse import EventSource

from services.client import downloads, flows, requests, searching
from services.client.address import find_address
from services.client.flows import BackOff, Effect, Emit, Flow, Receive, Send, Sleep, Stream, resume
from services.client.methods import Method, Resource
from services.client.requests import Request
from services.client.retries import Retries
from shared.schemas import Page

P = ParamSpec("P")
T = TypeVar("T")


class _Wire:
    """Runs flows in the event loop, any number at a time."""

    def __init__(self, http: httpx.AsyncClient, retries: Retries):
        self.http = http
        self.retries = retries

    async def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its result."""
        with closing(flow):
            async with aclosing(_Performer(self)) as performer:
                outcome: Any = None
                try:
                    while True:
                        outcome = await performer.perform(resume(flow, outcome))
                except StopIteration as end:
                    result: T = end.value
                    return result

    async def iterate(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        """Runs a stream and yields what it emits."""
        with closing(stream):
            async with aclosing(_Performer(self)) as performer:
                outcome: Any = None
                while True:
                    try:
                        effect = resume(stream, outcome)
                    except StopIteration:
                        return
                    if isinstance(effect, Emit):
                        yield effect.value
                    outcome = await performer.perform(effect)


class _Performer:
    """Performs the effects of one flow, and closes what it opened for it."""

    def __init__(self, wire: _Wire):
        self._wire = wire
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[Any]

    async def perform(self, effect: Effect | Emit[Any]) -> Any:
        """Performs an effect and returns its outcome, or the error of a connection that failed."""
        try:
            match effect:
                case Send(request):
                    return await self._send(request)
                case Receive():
                    return await anext(self._pieces, None)
                case Sleep(seconds):
                    return await self._sleep(seconds)
                case BackOff(attempt, response):
                    return await self._sleep(self._wire.retries.pause(attempt, response))
                case Emit():
                    return None
        except httpx.TransportError as error:
            return error

    async def aclose(self) -> None:
        """Closes the response that is still open."""
        if self._response is not None:
            await self._response.aclose()

    async def _sleep(self, seconds: float | None) -> bool:
        if seconds is not None:
            await asyncio.sleep(seconds)
        return seconds is not None

    async def _send(self, request: Request[Any]) -> httpx.Response:
        await self.aclose()
        http = self._wire.http
        response = self._response = await http.send(request.build(http), stream=True)
        if request.stream is None or response.is_error:
            await response.aread()
        elif request.stream == "events":
            self._pieces = EventSource(response).aiter_sse()
        else:
            self._pieces = response.aiter_bytes()
        return response


def _call(build: Callable[P, Request[T]]) -> Method[P, Coroutine[Any, Any, T]]:
    return Method(build, lambda wire, request: wire.run(flows.call(request)))


def _pages(build: Callable[P, Request[Page[T]]]) -> Method[P, AsyncIterator[T]]:
    return Method(build, lambda wire, request: wire.iterate(flows.pages(request)))


def _run(flow: Callable[P, Flow[T]]) -> Method[P, Coroutine[Any, Any, T]]:
    return Method(flow, lambda wire, flow: wire.run(flow))


def _iterate(stream: Callable[P, Stream[T]]) -> Method[P, AsyncIterator[T]]:
    return Method(stream, lambda wire, stream: wire.iterate(stream))


class AsyncFiles(Resource):
    """Uploaded files: `client.files`."""

    upload = _call(requests.upload_file)
    list = _pages(requests.list_files)
    get = _call(requests.get_file)
    delete = _call(requests.delete_file)


class AsyncJobs(Resource):
    """Jobs: `client.jobs`."""

    create = _call(requests.create_job)
    list = _pages(requests.list_jobs)
    get = _call(requests.get_job)
    cancel = _call(requests.cancel_job)
    retry = _call(requests.retry_job)
    delete = _call(requests.delete_job)
    events = _iterate(flows.events)
    wait = _run(flows.wait)
    results = _run(downloads.results)
    parts = _pages(requests.list_parts)
    errors = _pages(requests.list_errors)


class AsyncModels(Resource):
    """The registry of encoders and models: `client.models`."""

    list = _pages(requests.list_models)
    get = _call(requests.get_model)
    download = _run(downloads.model)
    delete = _call(requests.delete_model)


class AsyncPredictions(Resource):
    """What models say of a few items, while one waits: `client.predictions`."""

    create = _call(requests.create_predictions)


class AsyncChat(Resource):
    """Conversations with language models: `client.chat`."""

    create = _call(requests.create_chat)
    stream = _iterate(flows.chat)


class AsyncPrompts(Resource):
    """Prompts as data: `client.prompts`."""

    create = _call(requests.create_prompt)
    list = _pages(requests.list_prompts)
    get = _call(requests.get_prompt)
    preview = _call(requests.preview_prompt)
    delete = _call(requests.delete_prompt)


class AsyncWorkers(Resource):
    """The worker processes: `client.workers`."""

    list = _pages(requests.list_workers)


class AsyncKeys(Resource):
    """API keys, for administrators: `client.keys`."""

    create = _call(requests.create_key)
    list = _pages(requests.list_keys)
    revoke = _call(requests.revoke_key)


class AsyncClient:
    """Trivium from asyncio: `Client` with awaits. Use it as a context manager, or call `close`.

    Calls are awaited, lists and events are asynchronous iterators. Local files are read and written in the event
    loop's thread, a chunk at a time.
    """

    features = _run(flows.features)
    fine_tune = _run(flows.fine_tune)
    predict = _run(flows.predict)
    index = _run(flows.index)
    search = _run(searching.search)

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.address = find_address(base_url, api_key)
        http = httpx.AsyncClient(base_url=self.address.url, headers=self.address.headers, transport=transport)
        self._wire = _Wire(http, retries or Retries())
        self.files = AsyncFiles(self._wire)
        self.jobs = AsyncJobs(self._wire)
        self.models = AsyncModels(self._wire)
        self.predictions = AsyncPredictions(self._wire)
        self.chat = AsyncChat(self._wire)
        self.prompts = AsyncPrompts(self._wire)
        self.workers = AsyncWorkers(self._wire)
        self.keys = AsyncKeys(self._wire)

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
