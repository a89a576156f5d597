"""Around every request: its id, a line of access log, metrics, an answer whatever happened, limits of rate and size."""

import math
import re
import time
from contextlib import suppress
from hashlib import sha256
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.buckets import Ask, Buckets, Level, Rate
from services.gateway.errors import error_response, internal_error
from services.gateway.metrics import Metrics
from shared.errors import BusyError
from shared.ids import new_id
from shared.observability import get_logger
from shared.settings import Limits

log = get_logger("services.gateway.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

#: Asked every few seconds by machines; not worth a line each, and never refused.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

#: Requests with a wrong key, from one address.
FAILURES = Rate(per_second=1.0, size=20)

#: Keys that were valid when last used, as a process remembers them.
_KNOWN_KEYS = 10_000


class RequestMiddleware:
    """Gives a request its id (the caller's `X-Request-ID`, if sane), logs and counts it, answers unforeseen errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        with structlog.contextvars.bound_contextvars(request_id=exchange.id):
            try:
                await self._app(scope, receive, exchange.send)
            except Exception as error:
                log.exception("request failed", path=scope["path"], error=type(error).__name__)
                if exchange.status is not None:
                    raise  # half an answer is out: the server must break the connection
                await internal_error()(scope, receive, exchange.send)
            finally:
                self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        status = exchange.status or 499  # the caller left before there was an answer
        self._metrics.observe(scope["method"], route, status, exchange.seconds_to_answer())
        if scope["path"] not in _QUIET:
            log.info(
                "request", method=scope["method"], path=scope["path"], status=status,
                tenant=scope.get("state", {}).get("tenant"), bytes=exchange.bytes,
                milliseconds=round((time.perf_counter() - exchange.began) * 1000, 1),
            )  # fmt: skip


class _Exchange:
    """One request on its way through: passes the answer on and remembers what it was."""

    def __init__(self, scope: Scope, send: Send):
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _SANE_ID.fullmatch(given) else new_id("req")
        self.began = time.perf_counter()
        self.answered: float | None = None
        self.status: int | None = None
        self.bytes = 0
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answered = message["status"], time.perf_counter()
            MutableHeaders(scope=message)["X-Request-ID"] = self.id
        else:
            self.bytes += len(message.get("body", b""))
        await self._send(message)

    def seconds_to_answer(self) -> float:
        """Until the answer began: a stream may last for hours."""
        return (self.answered or time.perf_counter()) - self.began


class RateLimitMiddleware:
    """Refuses requests that come too fast (429), before their bodies are read.

    Each key has a bucket, whoever sends none has one by address. An address that sends wrong keys is refused after a
    while, but for keys that were valid lately: many callers may share an address, that of a proxy.
    """

    def __init__(self, app: ASGIApp, buckets: Buckets, limits: Limits):
        self._app, self._buckets, self._limits = app, buckets, limits
        self._known: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown",))[0]
        key = Headers(scope=scope).get("authorization")
        caller = f"client:{address}" if key is None else f"key:{sha256(key.encode()).hexdigest()[:32]}"
        failures = Ask(f"failures:{address}", FAILURES, tokens=0)
        level, failed = await self._buckets.take(Ask(caller, self._rate), failures)
        answer = _Limited(send, level)
        if level.refused:
            words = (
                f"Requests come too fast: {level.rate.per_second:g} a second are allowed, {level.rate.size} at once."
            )
            await error_response(_too_fast(words, level))(scope, receive, answer.send)
        elif failed.refused and caller not in self._known:
            words = "Too many requests with wrong API keys came from your address."
            await error_response(_too_fast(words, failed))(scope, receive, answer.send)
        else:
            await self._app(scope, receive, answer.send)
            await self._learn(scope, caller, failures.bucket, answer.status)

    @property
    def _rate(self) -> Rate:
        return Rate(self._limits.requests_per_second, self._limits.request_burst)

    async def _learn(self, scope: Scope, caller: str, failures: str, status: int | None) -> None:
        if status == HTTPStatus.UNAUTHORIZED:
            self._known.discard(caller)
            await self._buckets.take(Ask(failures, FAILURES))
        elif "tenant" in scope.get("state", {}):  # what `authenticate` leaves
            if len(self._known) >= _KNOWN_KEYS:
                self._known.clear()
            self._known.add(caller)


class _Limited:
    """An answer on its way out, with what is left of the caller's rate (draft-ietf-httpapi-ratelimit-headers-06)."""

    def __init__(self, send: Send, level: Level):
        self.status: int | None = None
        self._send, self._level = send, level

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["RateLimit-Limit"] = str(self._level.rate.size)
            headers["RateLimit-Remaining"] = str(self._level.left)
            headers["RateLimit-Reset"] = str(math.ceil(self._level.full_seconds))
        await self._send(message)


def _too_fast(message: str, level: Level) -> BusyError:
    return BusyError(message, retry_after=math.ceil(level.wait_seconds))


class BodyLimitMiddleware:
    """Refuses bodies over `limit` bytes (413), before or while they are read; uploads have a limit of their own."""

    def __init__(self, app: ASGIApp, limit: int, uploads: str):
        self._app, self._limit, self._uploads = app, limit, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http" or scope["path"] == self._uploads:
            await self._app(scope, receive, send)
            return
        received = 0
        announced = 0
        with suppress(ValueError):
            announced = int(Headers(scope=scope).get("content-length", "0"))

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, announced) > self._limit:
                # FastAPI lets its own exceptions pass while it reads a body, and turns others into a 400.
                raise HTTPException(413, f"The body is larger than the {self._limit} bytes allowed.")
            return message

        await self._app(scope, limited, send)
