"""How routes describe their answers in the OpenAPI document: an example of each, and the errors they may give."""

from typing import Any

from shared.schemas import ErrorResponse

Responses = dict[int | str, dict[str, Any]]

TAGS = [
    {"name": "files", "description": "Uploaded bytes: manifests, pictures, sounds. Stored once per content."},
    {"name": "jobs", "description": "Requests and how far they are."},
    {"name": "results", "description": "What jobs leave behind: events, features, errors of items."},
    {"name": "predictions", "description": "What a model says of a few items, while the caller waits."},
    {"name": "embeddings", "description": "Vectors of a few inputs, while the caller waits; in OpenAI's shape."},
    {"name": "batches", "description": "Files of requests, answered by a job; in OpenAI's shape."},
    {"name": "fine_tuning", "description": "Instruction tuning of language models; in OpenAI's shape."},
    {"name": "search", "description": "Items near another one, whatever the modality: say it, find the picture."},
    {"name": "chat", "description": "Conversations with language models, in OpenAI's shape."},
    {"name": "models", "description": "Encoders: those that ship, and those that jobs fitted."},
    {"name": "prompts", "description": "How items and their labels are put to models, as data with versions."},
    {"name": "workers", "description": "The processes that do the work."},
    {"name": "keys", "description": "API keys; for keys of scope `admin`."},
    {"name": "health", "description": "For those that watch this service."},
]

#: What each error status means here: words, type, code and an example of a message.
_ERRORS: dict[int, tuple[str, str, str, str]] = {
    400: ("The body is not JSON", "invalid_request_error", "invalid_json", "The body is not JSON: …"),
    401: ("No valid API key", "authentication_error", "invalid_api_key", "This API key is unknown or revoked."),
    403: ("Not allowed with this key", "permission_error", "permission_denied", "Only keys of scope `admin` may …"),
    404: ("No such thing, or another tenant's", "invalid_request_error", "job_not_found", "There is no job 'job-…'."),
    409: ("Its state forbids this", "invalid_request_error", "job_not_finished", "The job 'job-…' is running; …"),
    413: ("Over a limit", "invalid_request_error", "too_large", "The body is larger than the … bytes allowed."),
    422: ("Something in it must be changed", "invalid_request_error", "invalid_request", "limit: Input should be …"),
    429: (
        "Requests come too fast, or (`queue_full`) too much waits already; Retry-After says when to come back",
        "rate_limit_error",
        "rate_limit_exceeded",
        "Requests come too fast: … a second are allowed, … at once.",
    ),
    500: ("A fault of the server", "server_error", "internal_error", "Something went wrong here; …"),
    503: (
        "Postgres, S3 or (for predictions, searches and chat) Redis is away",
        "server_error",
        "unavailable",
        "A server that this one needs cannot be …",
    ),
    504: ("No answer in time", "server_error", "deadline_exceeded", "'model-…' did not answer in time: …"),
    507: ("Too little disk is left", "server_error", "storage_full", "Too little disk is left here to take more."),
}


#: Answers that say when to try again.
_LATER = frozenset({429, 503})

_RETRY_AFTER = {"description": "seconds", "schema": {"type": "integer"}, "example": 30}


def errors(*statuses: int) -> Responses:
    """The error answers with these statuses."""
    documented: Responses = {}
    for status in statuses:
        words, type, code, message = _ERRORS[status]
        example = {"error": {"message": message, "type": type, "code": code, "param": None}}
        documented[status] = {
            "model": ErrorResponse,
            "description": words,
            "content": {"application/json": {"example": example}},
        }
        if status in _LATER:
            documented[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    return documented


def answers(
    example: Any, *error_statuses: int, status: int = 200, words: str = "Success", also: dict[str, Any] | None = None
) -> Responses:
    """A JSON answer with its example, and the errors besides those that every route may give.

    `also`: answers in other media types.
    """
    success = {"description": words, "content": {"application/json": {"example": example}, **(also or {})}}
    return {status: success, **errors(*error_statuses)}


#: What every route that needs a key may answer.
COMMON_ERRORS = errors(401, 422, 429, 500, 503)
