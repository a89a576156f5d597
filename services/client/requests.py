"""Every request the client makes, as data: built here, sent by `client.py` or `async_client.py`."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from services.client.errors import ServerFailed
from services.client.job_options import AnyJobOptions, ChatOptions
from services.client.uploads import OnBytes, Upload, file_upload
from shared.chat import ChatChunk, ChatCompletion
from shared.items import Item
from shared.predictions import PredictionList
from shared.prompts import Prompt, PromptPreview, PromptTemplate
from shared.schemas import (
    Deleted,
    File,
    Input,
    ItemErrorEntry,
    Job,
    JobEvent,
    JobStatus,
    JobType,
    Key,
    ModelEntry,
    NewKey,
    Page,
    Part,
    WorkerEntry,
)
from shared.search import SearchResults

T = TypeVar("T")
ResultFormat = Literal["jsonl", "parquet", "npz"]

#: Seconds without a byte in either direction. Longer for uploads, which are answered only once they are stored.
_TIMEOUT, _TRANSFER_TIMEOUT, _CONNECT_TIMEOUT = 60.0, 300.0, 10.0


@dataclass(frozen=True)
class Request(Generic[T]):
    """One HTTP request and the type of its answer.

    `repeatable`: sending it twice does no more than once, so it may be sent again when the first answer got lost.
    `stream`: the answer is read piece by piece, as bytes or as server-sent events.
    """

    method: str
    path: str
    answer: type[T]
    params: Mapping[str, str | int | Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Upload | None = None
    repeatable: bool = True
    stream: Literal["bytes", "events"] | None = None
    timeout: float = _TIMEOUT

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """A fresh httpx request; an upload's content is opened anew, so that it can be sent again."""
        body: dict[str, Any] = {"json": self.json}
        if self.upload is not None:
            content = (self.upload.filename, self.upload.open(), "application/octet-stream")
            body = {"files": {"file": content}, "data": {"purpose": self.upload.purpose}}
        timeout = httpx.Timeout(self.timeout, connect=_CONNECT_TIMEOUT)
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, timeout=timeout, **body
        )

    def parse(self, response: httpx.Response) -> T:
        """The typed answer. Raises ServerFailed (`unexpected_answer`) when it is something else than a gateway's."""
        try:
            return TypeAdapter(self.answer).validate_json(response.content)
        except ValidationError as error:
            where = f"{self.method} {response.request.url}"
            raise ServerFailed(
                f"{where} did not answer as this version of the client expects: {error.errors()[0]['msg']}",
                status_code=response.status_code,
                code="unexpected_answer",
                request_id=response.headers.get("x-request-id"),
            ) from error

    def after(self, last_id: str) -> "Request[T]":
        """The same list, from the next page on."""
        return replace(self, params={**self.params, "after": last_id})


def upload(upload: Upload) -> Request[File]:
    """Uploads a file. Content is stored once, so a repeated upload adds no more than a second name for it."""
    return Request("POST", "/v1/files", File, upload=upload, timeout=_TRANSFER_TIMEOUT)


def upload_file(path: str | Path, *, on_bytes: OnBytes | None = None) -> Request[File]:
    """Streams the file at `path` to the gateway; `on_bytes(sent, total)` is told how far it is."""
    return upload(file_upload(Path(path)).watched_by(on_bytes))


def list_files(*, limit: int = 100) -> Request[Page[File]]:
    """All files, newest first; `limit` is the size of one page."""
    return Request("GET", "/v1/files", Page[File], params={"limit": limit})


def get_file(id: str) -> Request[File]:
    """One file's entry."""
    return Request("GET", f"/v1/files/{_part(id)}", File)


def delete_file(id: str) -> Request[Deleted]:
    """Deletes a file. Raises Conflict while a running job reads it."""
    return Request("DELETE", f"/v1/files/{_part(id)}", Deleted)


def create_job(
    *,
    type: JobType | str = JobType.FEATURES,
    items: Sequence[Item | Mapping[str, Any]] | None = None,
    input: Input | Mapping[str, str] | None = None,
    features: str | None = None,
    idempotency_key: str | None = None,
    **options: Unpack[AnyJobOptions],
) -> Request[Job]:
    """Creates a job from inline items, from a manifest the gateway has, or on the feature set of the job `features`.

    Without `idempotency_key` the client makes one, so that its own retries never create two jobs.
    """
    fields = {"type": type, "items": items, "input": input, "features": features, **options}
    body = to_jsonable_python({name: value for name, value in fields.items() if value is not None})
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Request("POST", "/v1/jobs", Job, json=body, headers=headers)


def list_jobs(
    *,
    status: Sequence[JobStatus] | None = None,
    type: JobType | None = None,
    metadata: Mapping[str, str] | None = None,
    limit: int = 100,
) -> Request[Page[Job]]:
    """The jobs in one of the states `status` that match all other filters, newest first; `limit` is a page's size."""
    params: dict[str, str | int | list[str]] = {"limit": limit, "status": [one.value for one in status or ()]}
    if type is not None:
        params["type"] = type.value
    params |= {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    return Request("GET", "/v1/jobs", Page[Job], params=params)


def get_job(id: str) -> Request[Job]:
    """A job and how far it is."""
    return Request("GET", f"/v1/jobs/{_part(id)}", Job)


def cancel_job(id: str) -> Request[Job]:
    """Asks for a job's end; what runs stops at its next batch."""
    return Request("POST", f"/v1/jobs/{_part(id)}/cancel", Job)


def retry_job(id: str) -> Request[Job]:
    """Tries the failed items of an ended job again. Raises Conflict while it runs."""
    return Request("POST", f"/v1/jobs/{_part(id)}/retry", Job, repeatable=False)


def delete_job(id: str) -> Request[Deleted]:
    """Deletes a job and its results. Raises Conflict while it runs."""
    return Request("DELETE", f"/v1/jobs/{_part(id)}", Deleted)


def list_errors(id: str, *, limit: int = 100) -> Request[Page[ItemErrorEntry]]:
    """What could not be used of a job's items, in the manifest's order."""
    return Request("GET", f"/v1/jobs/{_part(id)}/errors", Page[ItemErrorEntry], params={"limit": limit})


def list_parts(id: str, *, limit: int = 100) -> Request[Page[Part]]:
    """The Parquet parts of a job's feature set, each with a link that needs no key."""
    return Request("GET", f"/v1/jobs/{_part(id)}/results/parts", Page[Part], params={"limit": limit})


def read_results(id: str, format: ResultFormat) -> Request[bytes]:
    """A job's whole feature set, or its predictions, as one file."""
    path = f"/v1/jobs/{_part(id)}/results"
    return Request("GET", path, bytes, params={"format": format}, stream="bytes", timeout=_TRANSFER_TIMEOUT)


def read_events(id: str, last_event_id: str | None) -> Request[JobEvent]:
    """A job's events after `last_event_id`, as they happen."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    return Request("GET", f"/v1/jobs/{_part(id)}/events", JobEvent, headers=headers, stream="events")


def list_models(*, limit: int = 100) -> Request[Page[ModelEntry]]:
    """Built-in encoders, those of the operator's file, and what the tenant's jobs made."""
    return Request("GET", "/v1/models", Page[ModelEntry], params={"limit": limit})


def get_model(id: str) -> Request[ModelEntry]:
    """One encoder or model."""
    return Request("GET", f"/v1/models/{_part(id)}", ModelEntry)


def delete_model(id: str) -> Request[Deleted]:
    """Deletes a model that a job made. Raises Conflict while a job that has not ended needs it."""
    return Request("DELETE", f"/v1/models/{_part(id)}", Deleted)


def read_model_file(id: str, name: str) -> Request[bytes]:
    """One of the `files` of a model that a job made."""
    path = f"/v1/models/{_part(id)}/files/{quote(name)}"
    return Request("GET", path, bytes, stream="bytes", timeout=_TRANSFER_TIMEOUT)


def create_predictions(
    *,
    model: str,
    items: Sequence[Item | Mapping[str, Any]],
    contributions: bool = False,
    timeout_seconds: float | None = None,
) -> Request[PredictionList]:
    """What a model says of a few items, at once; pictures and sounds are `file-…` ids or `data:` URIs.

    `contributions`: and how much each modality moved it. Raises Unavailable if there is no answer in `timeout_seconds`.
    For more items there is `predict`.
    """
    fields = {"model": model, "items": items, "contributions": contributions, "timeout_seconds": timeout_seconds}
    body = to_jsonable_python({name: value for name, value in fields.items() if value is not None}, exclude_none=True)
    return Request("POST", "/v1/predictions", PredictionList, json=body, timeout=_TRANSFER_TIMEOUT)


def create_search(body: Mapping[str, Any]) -> Request[SearchResults]:
    """What is near an item, at once."""
    return Request("POST", "/v1/search", SearchResults, json=body, timeout=_TRANSFER_TIMEOUT)


def create_chat(
    *, model: str, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]
) -> Request[ChatCompletion]:
    """How a language model goes on with a conversation, in OpenAI's shape; pictures and sounds are parts of messages.

    Raises Unavailable if the answer does not begin within `timeout_seconds`.
    """
    body = {"model": model, "messages": list(messages), **options}
    return Request("POST", "/v1/chat/completions", ChatCompletion, json=body, timeout=_TRANSFER_TIMEOUT)


def stream_chat(
    *, model: str, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]
) -> Request[ChatChunk]:
    """The same, piece by piece; the last chunk has the token counts."""
    body = {"model": model, "messages": list(messages), **options}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request("POST", "/v1/chat/completions", ChatChunk, json=body, stream="events", timeout=_TRANSFER_TIMEOUT)


def create_prompt(
    name: str, prompt: PromptTemplate | Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> Request[Prompt]:
    """Stores a prompt, which jobs can name by its id. One of a name that is there becomes its next version."""
    body = to_jsonable_python({"name": name, "prompt": prompt, "metadata": metadata or {}})
    return Request("POST", "/v1/prompts", Prompt, json=body, repeatable=False)


def list_prompts(
    *, name: str | None = None, language: str | None = None, newest: bool = False, limit: int = 100
) -> Request[Page[Prompt]]:
    """The prompts that match all filters, newest first; `newest`: of each name its newest version alone."""
    given = {"name": name, "language": language, "newest": "true" if newest else None}
    params: dict[str, str | int] = {key: value for key, value in given.items() if value is not None}
    return Request("GET", "/v1/prompts", Page[Prompt], params={**params, "limit": limit})


def get_prompt(id: str) -> Request[Prompt]:
    """One version of a prompt."""
    return Request("GET", f"/v1/prompts/{_part(id)}", Prompt)


def preview_prompt(id: str, item: Item | Mapping[str, Any]) -> Request[PromptPreview]:
    """What language models and encoders are given of an item."""
    body = to_jsonable_python({"item": item}, exclude_none=True)
    return Request("POST", f"/v1/prompts/{_part(id)}/preview", PromptPreview, json=body)


def delete_prompt(id: str) -> Request[Deleted]:
    """Deletes one version of a prompt. Jobs that were given it keep what it said."""
    return Request("DELETE", f"/v1/prompts/{_part(id)}", Deleted)


def list_workers(*, limit: int = 100) -> Request[Page[WorkerEntry]]:
    """The workers that were heard from of late."""
    return Request("GET", "/v1/workers", Page[WorkerEntry], params={"limit": limit})


def create_key(*, name: str = "", tenant: str = "default", scope: Literal["user", "admin"] = "user") -> Request[NewKey]:
    """Makes an API key, and its tenant by naming it. The key itself is in this answer and never again."""
    body = {"name": name, "tenant": tenant, "scope": scope}
    return Request("POST", "/v1/keys", NewKey, json=body, repeatable=False)


def list_keys(*, limit: int = 100) -> Request[Page[Key]]:
    """All keys, without what is secret."""
    return Request("GET", "/v1/keys", Page[Key], params={"limit": limit})


def revoke_key(id: str) -> Request[Key]:
    """Makes a key useless from now on; it stays in the list."""
    return Request("DELETE", f"/v1/keys/{_part(id)}", Key)


def _part(id: str) -> str:
    """An identifier as one segment of a path, whatever a user typed."""
    return quote(id, safe="")
