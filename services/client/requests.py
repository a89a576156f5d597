"""Every request the client makes, as data: built here, sent by `client.py` or `async_client.py`."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypedDict, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from services.client.errors import ServerFailed
from services.client.uploads import Upload
from shared.preprocessing import Preprocessing
from shared.schemas import (
    Deleted,
    Encoders,
    File,
    Fusion,
    Input,
    Item,
    ItemErrorEntry,
    Job,
    JobStatus,
    JobType,
    ModelEntry,
    Part,
    WorkerEntry,
)

T = TypeVar("T")
ResultFormat = Literal["jsonl", "parquet", "npz"]

#: Seconds. Reading is long because a large upload is answered only once it is stored.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_TRANSFER_TIMEOUT = httpx.Timeout(300.0, connect=10.0)


class Page(BaseModel, Generic[T]):
    """A part of a list; `last_id` is where the next begins (`after`)."""

    data: list[T]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class JobOptions(TypedDict, total=False):
    """What a features job can be told besides its items; the gateway's defaults hold for what is left out."""

    encoders: Encoders | Mapping[str, str | None]
    preprocessing: Preprocessing | Mapping[str, Any]
    fusion: Fusion | Mapping[str, Any]
    shard_size: int
    priority: int
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Request(Generic[T]):
    """One HTTP request and the type of its answer.

    `repeatable`: sending it twice does no more than once, so it may be sent again when the first answer got lost.
    `stream`: the answer is read piece by piece, as bytes or as server-sent events.
    """

    method: str
    path: str
    answer: type[T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Upload | None = None
    repeatable: bool = True
    stream: Literal["bytes", "events"] | None = None
    timeout: httpx.Timeout = _TIMEOUT

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """A fresh httpx request; an upload's content is opened anew, so that it can be sent again."""
        body: dict[str, Any] = {"json": self.json}
        if self.upload is not None:
            content = (self.upload.filename, self.upload.open(), "application/octet-stream")
            body = {"files": {"file": content}, "data": self.upload.fields}
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, timeout=self.timeout, **body
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
