"""Around every request: its id, a line of access log, metrics, an answer whatever happened, and the body limit."""

import re
import time
from contextlib import suppress

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import internal_error
from services.gateway.metrics import Metrics
from shared.ids import new_id
from shared.observability import get_logger

log = get_logger("services.gateway.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

#: Asked every few seconds by machines; not worth a line each.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


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
