"""What the client does, without I/O: generators that yield what is to be done and are sent its outcome.

Both faces run the same flows, `Client` with blocking calls and `AsyncClient` with awaits, so that retries, paging,
resuming and downloads are written once. A failed connection is thrown in as httpx.TransportError.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import httpx
from pydantic import ValidationError

from services.client import requests
from services.client.errors import ClientError, ConnectionFailed, ServerFailed, WaitTimeout, error_from
from services.client.job_options import ChatOptions, FeaturesOptions, FineTuneOptions, IndexOptions, PredictOptions
from services.client.packing import FeatureSet, Prepared, Source, prepare
from services.client.requests import Request
from services.client.uploads import OnBytes, Upload
from shared.chat import ChatChunk
from shared.schemas import ErrorResponse, Input, Job, JobEvent, JobStatus, JobType, Page

T = TypeVar("T")

ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
#: After one of these the gateway closes the stream, unless the job was retried and more follows.
_ENDING_EVENTS = frozenset(f"job.{status.value}" for status in ENDED)
#: Seconds between two looks at a job that is waited for: short at first, for small jobs.
_FIRST_LOOK, _LATER_LOOKS = 0.1, 2.0


@dataclass(frozen=True)
class Send:
    """Send a request. Outcome: httpx.Response, its body read unless the request streams and the answer is no error."""

    request: Request[Any]


@dataclass(frozen=True)
class Receive:
    """The next piece of the response that streams. Outcome: bytes, or ServerSentEvent; None at the end."""


@dataclass(frozen=True)
class Sleep:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True)
class BackOff:
    """Wait before trying again after the `attempt`-th failure (`Retries`). Outcome: False if that was the last."""

    attempt: int
    response: httpx.Response | None = None


@dataclass(frozen=True)
class Emit(Generic[T]):
    """Hand a value to whoever iterates."""

    value: T


Effect = Send | Receive | Sleep | BackOff
#: Returns a T in the end.
Flow = Generator[Effect, Any, T]
#: Emits values of type T on the way.
Stream = Generator[Effect | Emit[T], Any, None]


def resume(flow: Flow[T] | Stream[T], outcome: Any) -> Effect | Emit[T]:
    """Tells a flow the outcome of its effect (throws it in if the connection failed) and returns the next effect.

    Raises StopIteration, with the result, at the end of the flow.
    """
    return flow.throw(outcome) if isinstance(outcome, httpx.TransportError) else flow.send(outcome)


def exchange(request: Request[Any]) -> Flow[httpx.Response]:
    """Sends a request until it is answered. Raises ApiError, or ConnectionFailed when retrying did not help."""
    for attempt in count(1):
        try:
            response: httpx.Response = yield Send(request)
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if not ((unsent or request.repeatable) and (yield BackOff(attempt))):
                raise connection_failed(error) from error
            continue
        if response.is_success:
            break
        untouched = response.status_code in {429, 503}
        if not ((untouched or request.repeatable) and (yield BackOff(attempt, response))):
            raise error_from(response)
    return response


def call(request: Request[T]) -> Flow[T]:
    """Sends a request and returns its typed answer."""
    response = yield from exchange(request)
    return request.parse(response)


def pages(request: Request[Page[T]]) -> Stream[T]:
    """Emits every entry of a list, page after page."""
    while True:
        page = yield from call(request)
        for entry in page.data:
            yield Emit(entry)
        if not page.has_more or page.last_id is None:
            return
        request = request.after(page.last_id)


def events(id: str, *, after: str | None = None) -> Stream[JobEvent]:
    """What happens to a job, from the beginning or after the event `after`, until the job has ended.

    Between them come events of the type `progress`: about each second the status, items and stages, if they changed.
    A connection that breaks is resumed after the last event that arrived: none is lost or doubled.
    """
    failures, ended = 0, False
    while True:
        response = yield from exchange(requests.read_events(id, after))
        if response.status_code == httpx.codes.NO_CONTENT:
            return
        broken: httpx.TransportError | None = None
        try:
            while (received := (yield Receive())) is not None:
                if not received.data:
                    continue  # a ping
                event = JobEvent.model_validate_json(received.data)
                failures, after = 0, event.id
                if event.type.startswith("job."):
                    ended = event.type in _ENDING_EVENTS
                yield Emit(event)
        except httpx.TransportError as error:
            broken = error
        if ended and broken is None:
            return
        failures += 1
        if not (yield BackOff(failures)):
            raise ConnectionFailed(f"The events of {id} break off again and again.") from broken


def chat(*, model: str, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> Stream[ChatChunk]:
    """How a language model goes on with a conversation, piece by piece; the last chunk has the token counts.

    Raises ConnectionFailed if the answer breaks off: it is not resumed.
    """
    request = requests.stream_chat(model=model, messages=messages, **options)
    response = yield from exchange(request)
    try:
        while (received := (yield Receive())) is not None:
            if received.data == "[DONE]":
                return
            if received.data:  # else a ping
                yield Emit(_chunk(received.data, response))
    except httpx.TransportError as error:
        raise connection_failed(error) from error
    raise ConnectionFailed("The answer broke off.")


def _chunk(data: str, response: httpx.Response) -> ChatChunk:
    """Raises ServerFailed if it is an error instead."""
    try:
        return ChatChunk.model_validate_json(data)
    except ValidationError:
        error = ErrorResponse.model_validate_json(data).error
        raise ServerFailed(
            error.message, status_code=response.status_code, code=error.code,
            request_id=response.headers.get("x-request-id"),
        ) from None  # fmt: skip


def wait(id: str, *, timeout: float | None = None) -> Flow[Job]:
    """Returns the job once it has succeeded, failed or been cancelled. Raises WaitTimeout after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_LOOK
    while True:
        job = yield from call(requests.get_job(id))
        if job.status in ENDED:
            return job
        if deadline is not None and time.monotonic() + pause > deadline:
            raise WaitTimeout(f"{id} is still {job.status.value} after {timeout:g} s; it goes on.")
        yield Sleep(pause)
        pause = min(pause * 1.5, _LATER_LOOKS)


def features(source: Source, *, on_bytes: OnBytes | None = None, **options: Unpack[FeaturesOptions]) -> Flow[Job]:
    """Creates a features job from what is at hand and returns it at once (`jobs.wait` waits for it).

    `source` is a JSONL manifest beside its media, a folder, a tar, zip or Parquet file, a `file-…` id, an `s3://`
    prefix, or the records themselves. Local media must lie below the manifest's folder (below the working folder, for
    records); they are packed and uploaded in one stream, and `on_bytes(sent, total)` is told how far it is.
    """
    prepared = prepare(source)
    if isinstance(prepared, FeatureSet):
        message = f"The features of {source} are there already: train on them, predict with them, or download them."
        raise ClientError(message, code="unsuitable_source")
    given = yield from _deliver(prepared, on_bytes)
    return (yield from call(requests.create_job(**given, **options)))


def fine_tune(source: Source, *, on_bytes: OnBytes | None = None, **options: Unpack[FineTuneOptions]) -> Flow[Job]:
    """Creates a job that trains a model on labelled items, and returns it at once.

    `source` is what `features` takes, or the id of the job (`job-…`) that made the features of these items. When the
    job has succeeded, its `models` names what it made.
    """
    given = yield from _deliver(prepare(source), on_bytes)
    return (yield from call(requests.create_job(type=JobType.FINE_TUNE, **given, **options)))


def predict(source: Source, *, on_bytes: OnBytes | None = None, **options: Unpack[PredictOptions]) -> Flow[Job]:
    """Creates a job that applies `model` to items, and returns it at once; `jobs.results` gives the predictions.

    `source` is what `fine_tune` takes. Items are encoded as those were that the model was trained on.
    """
    given = yield from _deliver(prepare(source), on_bytes)
    return (yield from call(requests.create_job(type=JobType.PREDICT, **given, **options)))


def index(source: Source, *, on_bytes: OnBytes | None = None, **options: Unpack[IndexOptions]) -> Flow[Job]:
    """Creates a job that makes items searchable in the space of `model`, and returns it at once; `search` takes its id.

    `source` is what `fine_tune` takes; `model` is what a job of the method `align` made.
    """
    given = yield from _deliver(prepare(source), on_bytes)
    return (yield from call(requests.create_job(type=JobType.INDEX, **given, **options)))


class _Given(TypedDict, total=False):
    """Where a job's items are, as `create_job` takes it."""

    items: list[dict[str, Any]]
    input: Input
    features: str


def _deliver(prepared: Prepared, on_bytes: OnBytes | None) -> Flow[_Given]:
    """Uploads what must be, so that the gateway has everything."""
    match prepared:
        case Upload():
            file = yield from call(requests.upload(prepared.watched_by(on_bytes)))
            return _Given(input=Input(file_id=file.id, s3_prefix=None))
        case Input():
            return _Given(input=prepared)
        case FeatureSet(job_id):
            return _Given(features=job_id)
    return _Given(items=prepared)


def connection_failed(error: httpx.TransportError) -> ConnectionFailed:
    """What a caller is told of a connection that failed for good."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    return ConnectionFailed(f"The gateway at {url.scheme}://{url.netloc.decode()} cannot be reached: {reason}.")
