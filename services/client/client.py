"""The blocking client."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
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
    """Runs flows with blocking calls, several at a time if threads want that."""

    def __init__(self, http: httpx.Client, retries: Retries):
        self.http = http
        self.retries = retries

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its result."""
        with closing(flow), closing(_Performer(self)) as performer:
            outcome: Any = None
            try:
                while True:
                    outcome = performer.perform(resume(flow, outcome))
            except StopIteration as end:
                result: T = end.value
                return result

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """Runs a stream and yields what it emits."""
        with closing(stream), closing(_Performer(self)) as performer:
            outcome: Any = None
            while True:
                try:
                    effect = resume(stream, outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.value
                outcome = performer.perform(effect)


class _Performer:
    """Performs the effects of one flow, and closes what it opened for it."""

    def __init__(self, wire: _Wire):
        self._wire = wire
        self._response: httpx.Response | None = None
        self._pieces: Iterator[Any]

    def perform(self, effect: Effect | Emit[Any]) -> Any:
        """Performs an effect and returns its outcome, or the error of a connection that failed."""
        try:
            match effect:
                case Send(request):
                    return self._send(request)
                case Receive():
                    return next(self._pieces, None)
                case Sleep(seconds):
                    return self._sleep(seconds)
                case BackOff(attempt, response):
                    return self._sleep(self._wire.retries.pause(attempt, response))
                case Emit():
                    return None
        except httpx.TransportError as error:
            return error

    def close(self) -> None:
        """Closes the response that is still open."""
        if self._response is not None:
            self._response.close()

    def _sleep(self, seconds: float | None) -> bool:
        if seconds is not None:
            time.sleep(seconds)
        return seconds is not None

    def _send(self, request: Request[Any]) -> httpx.Response:
        self.close()
        http = self._wire.http
        response = self._response = http.send(request.build(http), stream=True)
        if request.stream is None or response.is_error:
            response.read()
        elif request.stream == "events":
            self._pieces = EventSource(response).iter_sse()
        else:
            self._pieces = response.iter_bytes()
        return response


def _call(build: Callable[P, Request[T]]) -> Method[P, T]:
    return Method(build, lambda wire, request: wire.run(flows.call(request)))


def _pages(build: Callable[P, Request[Page[T]]]) -> Method[P, Iterator[T]]:
    return Method(build, lambda wire, request: wire.iterate(flows.pages(request)))


def _run(flow: Callable[P, Flow[T]]) -> Method[P, T]:
    return Method(flow, lambda wire, flow: wire.run(flow))


def _iterate(stream: Callable[P, Stream[T]]) -> Method[P, Iterator[T]]:
    return Method(stream, lambda wire, stream: wire.iterate(stream))


class Files(Resource):
    """Uploaded files: `client.files`."""

    upload = _call(requests.upload_file)
    list = _pages(requests.list_files)
    get = _call(requests.get_file)
    delete = _call(requests.delete_file)


class Jobs(Resource):
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


class Models(Resource):
    """The registry of encoders and models: `client.models`."""

    list = _pages(requests.list_models)
    get = _call(requests.get_model)
    download = _run(downloads.model)
    delete = _call(requests.delete_model)


class Predictions(Resource):
    """What models say of a few items, while one waits: `client.predictions`."""

    create = _call(requests.create_predictions)


class Chat(Resource):
    """Conversations with language models: `client.chat`."""

    create = _call(requests.create_chat)
    stream = _iterate(flows.chat)


class Prompts(Resource):
    """Prompts as data: `client.prompts`."""

    create = _call(requests.create_prompt)
    list = _pages(requests.list_prompts)
    get = _call(requests.get_prompt)
    preview = _call(requests.preview_prompt)
    delete = _call(requests.delete_prompt)


class Workers(Resource):
    """The worker processes: `client.workers`."""

    list = _pages(requests.list_workers)


class Keys(Resource):
    """API keys, for administrators: `client.keys`."""

    create = _call(requests.create_key)
    list = _pages(requests.list_keys)
    revoke = _call(requests.revoke_key)


class Client:
    """Trivium from Python, blocking. Use it as a context manager, or call `close`; threads may share it.

    `base_url` and `api_key` default to TRIVIUM_URL and TRIVIUM_API_KEY, then to the local stack that runs in
    `.trivium`. `transport` replaces the network, for tests. Methods raise ApiError and ClientError (`errors.py`);
    lists are iterators that fetch page after page.
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
        transport: httpx.BaseTransport | None = None,
    ):
        self.address = find_address(base_url, api_key)
        http = httpx.Client(base_url=self.address.url, headers=self.address.headers, transport=transport)
        self._wire = _Wire(http, retries or Retries())
        self.files = Files(self._wire)
        self.jobs = Jobs(self._wire)
        self.models = Models(self._wire)
        self.predictions = Predictions(self._wire)
        self.chat = Chat(self._wire)
        self.prompts = Prompts(self._wire)
        self.workers = Workers(self._wire)
        self.keys = Keys(self._wire)

    def close(self) -> None:
        """Closes the connections."""
        self._wire.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
