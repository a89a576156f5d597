"""Every error as the one shape that callers see: `{"error": {"message", "type", "code", "param"}}`."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from itertools import takewhile
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from shared.db import is_outage
from shared.errors import AuthenticationError, InvalidRequestError, TriviumError, UnavailableError
from shared.observability import get_logger
from shared.requests import TAGS
from shared.schemas import ErrorBody, ErrorResponse, JobType

log = get_logger(__name__)

#: Codes of the errors that the framework itself raises.
_CODES = {400: "invalid_json", 404: "unknown_route", 405: "method_not_allowed", 413: "too_large"}

#: Not in the standard, but what nginx and those who read logs know it by.
_CLIENT_CLOSED = 499

#: How pydantic writes a choice that is a member of an enum; callers know only its value.
_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")

#: In the place of an error, a member of a union: which kind of value was tried.
_MEMBER_TAG = re.compile(r"(str|int|float|bool|(literal|list)\[.*|constrained-\w+|[A-Z]\w*)")

#: More wrong fields than this are not named one by one.
_NAMED_FIELDS = 3


def add_error_handlers(app: FastAPI) -> None:
    """One handler for each family of errors; what is left over is answered by `middleware.RequestMiddleware`."""
    app.add_exception_handler(TriviumError, _on_deliberate)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_framework)
    app.add_exception_handler(DBAPIError, _on_database)
    app.add_exception_handler(PoolTimeoutError, _on_database)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def error_response(error: TriviumError, *, status: int | None = None) -> JSONResponse:
    """The answer that a deliberate error stands for."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error).model_dump(), status_code=status or error.status, headers=headers)


def error_body(error: TriviumError) -> ErrorResponse:
    """A deliberate error as callers see it."""
    body = ErrorBody(message=error.message, type=error.type, code=error.error_code, param=error.param)
    return ErrorResponse(error=body)


def internal_error() -> JSONResponse:
    """The answer to a fault of ours; what it was is in the logs, under the request's id."""
    return error_response(
        TriviumError("Something went wrong here; the request id in X-Request-ID finds it in the logs.")
    )


async def _on_deliberate(_: Request, error: Exception) -> Response:
    assert isinstance(error, TriviumError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request failed", code=error.error_code, error=error.message)
    if isinstance(error, UnavailableError):
        # The cause may name hosts and keys; it stays in the log.
        return _unavailable(error.retry_after)
    return error_response(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_readable(problem) for problem in error.errors()]
    if problems[0]["type"] == "json_invalid":
        place, reason = problems[0]["loc"][-1], problems[0]["ctx"]["error"]
        broken = InvalidRequestError(f"The body is not JSON: {reason} at character {place}.", code="invalid_json")
        return error_response(broken, status=HTTPStatus.BAD_REQUEST)
    return error_response(InvalidRequestError(_summary(problems), param=_path(problems[0]["loc"])))


async def _on_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = HTTPStatus(error.status_code)
    words = error.detail if error.detail != reason.phrase else reason.description or reason.phrase
    server = reason >= HTTPStatus.INTERNAL_SERVER_ERROR
    body = ErrorBody(
        message=words,
        type="server_error" if server else "invalid_request_error",
        code=_CODES.get(reason, "internal_error" if server else "invalid_request"),
    )
    headers = {"Allow": _allowed(request)} if reason is HTTPStatus.METHOD_NOT_ALLOWED else None
    return JSONResponse(ErrorResponse(error=body).model_dump(), status_code=reason, headers=headers)


def _allowed(request: Request) -> str:
    """The methods of a path: each has a route of its own, and the framework names those of the first one only."""
    routes = request.app.routes
    return ", ".join(
        method
        for method in ("GET", "POST", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    )


async def _on_database(_: Request, error: Exception) -> Response:
    if isinstance(error, DataError):
        message = "A value in the request cannot be stored: it holds a NUL character, or a number that is too large."
        return error_response(InvalidRequestError(message))
    if isinstance(error, PoolTimeoutError) or is_outage(error):
        log.warning("Postgres cannot be used", error=str(error.__cause__ or error))
        return _unavailable(None)
    log.error("database error", exc_info=error)
    return internal_error()


async def _on_disconnect(_: Request, error: Exception) -> Response:  # noqa: ARG001
    broken = InvalidRequestError("The connection was closed before the body ended.", code="disconnected")
    return error_response(broken, status=_CLIENT_CLOSED)  # for the log alone: nobody is there to read it


def _unavailable(retry_after: int | None) -> JSONResponse:
    message = "A server that this one needs cannot be reached just now; try again in a few seconds."
    return error_response(UnavailableError(message, retry_after=retry_after or 5))


def _readable(problem: dict[str, Any]) -> dict[str, Any]:
    """A job of an unknown type, said as of any other field with a few values."""
    if problem["type"] != "union_tag_invalid" or not isinstance(problem.get("input"), dict):
        return problem
    known = ", ".join(repr(type.value) for type in JobType)
    return {**problem, "type": "enum", "loc": ("body", "type"), "msg": f"Input should be one of {known}"}


def _summary(problems: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong, without repeating what was sent."""
    named = []
    for problem in problems[:_NAMED_FIELDS]:
        words = _MEMBER.sub(r"\1", str(problem["msg"]).removeprefix("Value error, "))
        path = _path(problem["loc"])
        if path is None and problem["loc"] and problem["loc"][0] == "body" and problem["type"] != "value_error":
            words = "The body must be a JSON object, sent with `Content-Type: application/json`"
        named.append(f"{path}: {words}" if path else words)
    left = len(problems) - len(named)
    return "; ".join(named) + (f"; and {left} more" if left > 0 else "") + "."


def _path(location: Sequence[Any]) -> str | None:
    """`("body", "features", "items", 3, "id")` → `items.3.id`: the job's type is no field on the way, and what kinds of
    values a field might have is none of its name."""
    place = location[2:] if location[1:2] and location[0] == "body" and location[1] in TAGS else location[1:]
    named = takewhile(lambda part: not _MEMBER_TAG.fullmatch(part), map(str, place))
    return ".".join(named) or None
