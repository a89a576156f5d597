"""What the client raises: `ApiError` for an answer that is an error, `ClientError` for what never reached the gateway.

Like every error of Trivium, each carries `message`, `error_code` (stable) and `param`.
"""

from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from shared.errors import TriviumError
from shared.schemas import ErrorBody, ErrorResponse


class ClientError(TriviumError):
    """Something on this side: no gateway is known, a manifest cannot be packed, a file cannot be read."""

    code = "client_error"


class ConnectionFailed(ClientError):
    """The gateway could not be reached, or the connection broke, and trying again did not help."""

    code = "connection_failed"


class DamagedDownload(ClientError):
    """What arrived is not what is stored, and trying again did not help."""

    code = "damaged_download"


class WaitTimeout(ClientError):
    """The job had not ended when the caller's time was over; it goes on."""

    code = "wait_timeout"


class ApiError(TriviumError):
    """The gateway answered with an error. `status_code` is HTTP's; `request_id` finds the request in its logs."""

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message, code=code, param=param, retry_after=retry_after)
        self.status_code = status_code
        self.request_id = request_id


class InvalidRequest(ApiError):
    """400, 422: the request cannot be accepted as it is."""


class AuthenticationFailed(ApiError):
    """401, 403: no key, a wrong one, or one that may not do this."""


class NotFound(ApiError):
    """404: no such thing, or another tenant's."""


class Conflict(ApiError):
    """409: the thing's state forbids it."""


class TooLarge(ApiError):
    """413: over a limit of the gateway's."""


class RateLimited(ApiError):
    """429: requests came too fast, or too much waits already, and still after the client's own retries."""


class Unavailable(ApiError):
    """502, 503, 504: the gateway, or what it stands on, is away."""


class ServerFailed(ApiError):
    """Any other 5xx."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    403: AuthenticationFailed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def error_from(response: httpx.Response) -> ApiError:
    """The typed error that a response (status 400 or above, body read) stands for."""
    fallback = ServerFailed if response.status_code >= 500 else InvalidRequest
    kind = _BY_STATUS.get(response.status_code, fallback)
    body = _error_body(response)
    return kind(
        body.message,
        status_code=response.status_code,
        code=body.code,
        param=body.param,
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after(response),
    )


def _error_body(response: httpx.Response) -> ErrorBody:
    """The error in the body, or, when something else than the gateway answered (a proxy), one made from the status."""
    try:
        return ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        message = f"{response.request.url} answered {response.status_code} {response.reason_phrase}."
        return ErrorBody(message=message, type="server_error", code=f"http_{response.status_code}")


def retry_after(response: httpx.Response) -> int | None:
    """The Retry-After header in whole seconds from now (RFC 9110: seconds, or a date), None without a usable one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return int(value)
    try:
        then = parsedate_to_datetime(value)
        now = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return None
    return max(0, int((then - now).total_seconds()))
