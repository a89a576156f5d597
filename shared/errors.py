"""Every error that Trivium raises on purpose, with the stable code that reaches users.

Codes are part of the interface: they are stored in rows, returned over HTTP and matched by clients.
Messages may change; codes may not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class TriviumError(Exception):
    """Base of all deliberate errors.

    `code` is stable; `status` is the HTTP status the gateway answers with; `param` names the request
    field at fault; `retry_after` (seconds) asks the caller to come back later.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.message = message
        self.error_code = code or self.code
        self.param = param
        self.retry_after = retry_after


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """What is raised within is the fault of this field of the request, whatever its name is further inside."""
    try:
        yield
    except TriviumError as error:
        error.param = param
        raise


class InvalidRequestError(TriviumError):
    """The request cannot be accepted as it is; the message says what to change."""

    code, status, type = "invalid_request", 422, "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """A conversation is longer than the language model can read. 400, as users of OpenAI's interface know it."""

    code, status = "context_length_exceeded", 400


class AuthenticationError(TriviumError):
    """No key, or one that is unknown or revoked."""

    code, status, type = "invalid_api_key", 401, "authentication_error"


class PermissionDeniedError(TriviumError):
    """The key is valid but may not do this."""

    code, status, type = "permission_denied", 403, "permission_error"


class NotFoundError(TriviumError):
    """No such thing, or it belongs to another tenant (the two are not told apart)."""

    code, status, type = "not_found", 404, "invalid_request_error"


class ConflictError(TriviumError):
    """The thing exists, but its state forbids this."""

    code, status, type = "conflict", 409, "invalid_request_error"


class TooLargeError(TriviumError):
    """A body, file or manifest over its limit."""

    code, status, type = "too_large", 413, "invalid_request_error"


class BusyError(TriviumError):
    """Too much is waiting already; come back after `retry_after` seconds."""

    code, status, type = "rate_limit_exceeded", 429, "rate_limit_error"


class UnavailableError(TriviumError):
    """A server that Trivium stands on (Postgres, Redis, S3) cannot be reached just now."""

    code, status, type = "unavailable", 503, "server_error"


class DeadlineError(TriviumError):
    """Someone waited for an answer, and it did not come in time."""

    code, status, type = "deadline_exceeded", 504, "server_error"


class StorageFullError(TriviumError):
    """Too little disk is left to accept more."""

    code, status, type = "storage_full", 507, "server_error"


class ItemError(TriviumError):
    """One modality of one item cannot be used; the item goes on without it.

    Stable codes: `invalid_json`, `invalid_item`, `duplicate_id`, `missing_media`, `media_too_large`,
    `unsupported_format`, `corrupt_media`, `empty_media`, `empty_text`, `text_too_large`, `decode_timeout`,
    `decode_crashed`, `item_crashed_worker`, `unsuitable_media`, `no_usable_modality`, `out_of_memory`,
    `non_finite_vector`, `no_known_words`, `shard_failed`, `url_not_allowed`, `url_failed`.
    """

    code, status, type = "invalid_item", 422, "item_error"


class JobError(TriviumError):
    """Something that is no item's fault ends the whole job (an encoder that cannot be loaded, say)."""

    code, status, type = "job_failed", 500, "job_error"


class LeaseLostError(TriviumError):
    """The shard's lease ran out or was taken away: what this worker holds of it no longer counts."""

    code, status, type = "lease_lost", 409, "server_error"


class ShardCancelledError(TriviumError):
    """The job is being cancelled; stop at the next batch."""

    code, status, type = "cancelled", 409, "server_error"
