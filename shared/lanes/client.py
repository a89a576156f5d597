"""The gateway's side of interactive lanes: requests out, answers back to whoever waits for them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import OutOfMemoryError, RedisError

from shared.errors import BusyError, DeadlineError, TriviumError, UnavailableError
from shared.ids import new_id
from shared.items import MediaLocation
from shared.lanes.messages import (
    KEEP_SECONDS,
    Encoded,
    EncodeItems,
    Failed,
    Fused,
    FuseRows,
    GenerateItems,
    LaneAnswer,
    LaneRequest,
    Payload,
    Predicted,
    PredictRows,
    Result,
    Said,
    Spoken,
    active_key,
    answers_key,
    gone_key,
    lane_key,
)
from shared.observability import get_logger
from shared.queues import Modality, Stage

log = get_logger(__name__)

#: Redis answers within this, or counts as away.
PATIENCE_SECONDS = 2.0

#: How long one look at the list of answers lasts, and the pause after one that failed.
_LOOK_SECONDS, _PAUSE_SECONDS = 1.0, 0.5

#: Requests that are handed to Redis at the same moment.
_CONNECTIONS = 16

# KEYS: the lane, the stage's lanes in use. ARGV: request, most requests that may wait, seconds to keep them, model.
# A lane that was empty may be taken up from now on, or later if a worker is about to load its model.
_PUSH = """
local waiting = redis.call('LLEN', KEYS[1])
if waiting >= tonumber(ARGV[2]) then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local from = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[4]) or 0)
if waiting == 0 and from < now then redis.call('ZADD', KEYS[2], string.format('%.6f', now), ARGV[4]) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""

#: Stage, how it ended (`ok`, or an error's code) and how many seconds it took.
Observer = Callable[[Stage, str, float], None]


class LaneFailedError(TriviumError):
    """A worker could not answer, by no fault of the items: an encoder that cannot be loaded, say."""

    code, status, type = "lane_failed", 500, "server_error"


class LaneClient:
    """Asks the lanes. Use it in one event loop; the first request starts the coroutine that reads the answers.

    Every request raises DeadlineError, BusyError (`lane_full`), UnavailableError (Redis is away, or what the worker
    needs) or LaneFailedError. `deadline` is a Unix time, at most KEEP_SECONDS from now.
    """

    def __init__(self, redis_url: str, lane_requests: int, observe: Observer = lambda *_: None):
        self._lane_requests, self._observe = lane_requests, observe
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_CONNECTIONS,
            timeout=PATIENCE_SECONDS,
            socket_timeout=PATIENCE_SECONDS,
            socket_connect_timeout=PATIENCE_SECONDS,
            # A connection that Redis closed long ago is noticed when it is used; a request sent twice is answered once.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionLostError,)),
        )
        self._redis = Redis.from_pool(pool)
        self._push_script = self._redis.register_script(_PUSH)
        self._answers = answers_key(new_id("gateway"))
        self._waiting: dict[str, asyncio.Queue[Result | TriviumError]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._away = self._closing = False

    async def encode(
        self,
        modality: Modality,
        model: str,
        items: Sequence[str | MediaLocation],
        preprocessing: dict[str, Any],
        *,
        tenant: str,
        deadline: float,
    ) -> Encoded:
        """The vectors of items under an encoder: its id in the catalogue, or that of a model that a job fitted."""
        payload = EncodeItems(items=list(items), preprocessing=preprocessing)
        result = await self._observed(Stage(modality.value), model, payload, tenant, deadline)
        assert isinstance(result, Encoded)
        return result

    async def predict(self, model: str, rows: PredictRows, *, tenant: str, deadline: float) -> Predicted:
        """What a model of the tenant's says of vectors."""
        result = await self._observed(Stage.PREDICT, model, rows, tenant, deadline)
        assert isinstance(result, Predicted)
        return result

    async def fuse(self, model: str, rows: FuseRows, *, tenant: str, deadline: float) -> Fused:
        """What the fusion of a model of the tenant's makes of vectors."""
        result = await self._observed(Stage.PREDICT, model, rows, tenant, deadline)
        assert isinstance(result, Fused)
        return result

    async def generate(
        self, model: str, payload: GenerateItems, *, tenant: str, deadline: float
    ) -> AsyncGenerator[Said | Spoken, None]:
        """The answer of a language model, piece by piece; Spoken is the end of it. `deadline` is for its beginning.

        Close the generator (`contextlib.aclosing`): the worker stops soon after its caller has gone.
        """
        request = self._request(Stage.GENERATE, model, payload, tenant, deadline)
        outcome = "cancelled"
        began = time.perf_counter()
        try:
            async with aclosing(self._results(request)) as results:
                async for result in results:
                    assert isinstance(result, Said | Spoken)
                    if isinstance(result, Spoken):
                        outcome = "ok"
                    yield result
                    if isinstance(result, Spoken):
                        return
        except TriviumError as error:
            outcome = error.error_code
            raise
        finally:
            self._observe(request.stage, outcome, time.perf_counter() - began)
            if outcome in {"cancelled", DeadlineError.code, UnavailableError.code}:
                self._leave(request)

    async def close(self) -> None:
        """Ends the reading, fails what waits, closes the connections."""
        self._closing = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail_all("This gateway is leaving.")
        await asyncio.gather(*self._leaving)
        await self._redis.aclose()

    async def _observed(self, stage: Stage, model: str, payload: Payload, tenant: str, deadline: float) -> Result:
        began, outcome = time.perf_counter(), "cancelled"
        try:
            async with aclosing(self._results(self._request(stage, model, payload, tenant, deadline))) as results:
                result = await anext(results)
            outcome = "ok"
        except TriviumError as error:
            outcome = error.error_code
            raise
        finally:
            self._observe(stage, outcome, time.perf_counter() - began)
        return result

    def _request(self, stage: Stage, model: str, payload: Payload, tenant: str, deadline: float) -> LaneRequest:
        return LaneRequest(
            request_id=new_id("ask"), tenant=tenant, stage=stage, model=model, deadline=deadline,
            reply_to=self._answers, payload=payload,
        )  # fmt: skip

    async def _results(self, request: LaneRequest) -> AsyncGenerator[Result, None]:
        """What comes for a request, without end; the first of it by the deadline, then each within KEEP_SECONDS."""
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        results = self._waiting[request.request_id] = asyncio.Queue()
        until = request.deadline
        try:
            async with asyncio.timeout(until - time.time()):
                await self._push(request)
            while True:
                async with asyncio.timeout(until - time.time()):
                    result = await results.get()
                if isinstance(result, TriviumError):
                    raise result
                if isinstance(result, Failed):
                    raise _error_of(result)
                yield result
                until = time.time() + KEEP_SECONDS
        except TimeoutError:
            message = (
                f"{request.model!r} did not answer in time: its workers are busy, away, or still load it. Try again."
            )
            raise DeadlineError(message) from None
        finally:
            del self._waiting[request.request_id]

    def _leave(self, request: LaneRequest) -> None:
        """Lets the worker know that nobody waits any more. Whoever was cancelled may not wait for this either."""

        async def tell() -> None:
            with suppress(RedisError, OSError):
                await self._redis.set(gone_key(request.request_id), 1, ex=KEEP_SECONDS)

        task = asyncio.create_task(tell())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _push(self, request: LaneRequest) -> None:
        lane = lane_key(request.stage, request.model)
        data = request.model_dump_json()
        try:
            accepted = await self._push_script(
                keys=[lane, active_key(request.stage)], args=[data, self._lane_requests, KEEP_SECONDS, request.model]
            )
        except OutOfMemoryError:
            accepted = False
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        if not accepted:
            message = f"Too many requests wait for {request.model!r} already; try again in a moment."
            raise BusyError(message, code="lane_full", retry_after=1)

    async def _read(self) -> None:
        """Hands out the answers; while Redis is away, nobody is left waiting for it."""
        structlog.contextvars.unbind_contextvars("request_id")  # it serves not only the request that started it
        while not self._closing:  # being cancelled is not enough: `asyncio.wait_for` of Python 3.11 may swallow it
            try:
                found = await self._redis.blpop([self._answers], timeout=_LOOK_SECONDS)
            except (RedisError, OSError) as error:
                self._note(away=True, error=str(error) or type(error).__name__)
                self._fail_all("Redis is away.")
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._note(away=False)
            if found is not None:
                self._hand_out(found[1])

    def _hand_out(self, data: bytes | str) -> None:
        try:
            answer = LaneAnswer.model_validate_json(data)
        except ValueError:
            log.exception("an answer cannot be read")
            return
        results = self._waiting.get(answer.request_id)  # None: its deadline has passed, or its caller has gone
        if results is not None:
            results.put_nowait(answer.result)

    def _fail_all(self, reason: str) -> None:
        for results in self._waiting.values():
            results.put_nowait(UnavailableError(reason))

    def _note(self, *, away: bool, error: str = "") -> None:
        """One line when Redis goes away, and one when it is back."""
        if away and not self._away:
            log.warning("interactive lanes wait for Redis", error=error)
        elif self._away and not away:
            log.info("interactive lanes have Redis again")
        self._away = away


def _error_of(failed: Failed) -> TriviumError:
    if failed.code == UnavailableError.code:
        return UnavailableError(failed.message)
    return LaneFailedError(failed.message, code=failed.code)


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"Redis is away: {error or type(error).__name__}", retry_after=2)
