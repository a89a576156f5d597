"""What a bad input is here, how it is sent, and how its outcome is written."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK = "ok"


@dataclass(frozen=True)
class Line:
    """One line of a manifest, as bytes; all lines are planned and extracted in one job.

    Expected: `ok`, or the code of the line's first error.
    """

    name: str
    line: bytes
    expected: str
    how = "line of a manifest"


@dataclass(frozen=True)
class Manifest:
    """An uploaded manifest or archive with a job of its own.

    Expected: the job's error code, or each item with `ok` or its first error's code: `a ok, b missing_media`.
    """

    name: str
    data: bytes
    expected: str
    how = "uploaded manifest"


@dataclass(frozen=True)
class Request:
    """One HTTP request by a usual client. Expected: status, and the code of the error: `422 invalid_request`."""

    name: str
    method: str
    path: str
    expected: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    how = "HTTP request"


@dataclass(frozen=True)
class Wire:
    """Bytes written to a fresh connection.

    Expected: the status and the code of the error, if the answer is ours; `no answer` if there is none.
    """

    name: str
    data: bytes
    expected: str
    how = "bytes on the wire"


Case = Line | Manifest | Request | Wire


def item(name: str, expected: str, **fields: Any) -> Line:
    """An item with these fields."""
    return Line(name, json.dumps({"id": name, **fields}, ensure_ascii=False).encode(), expected)


def media(name: str, modality: str, data: bytes, expected: str) -> Line:
    """An item with a picture or sound in a `data:` URI; its stated type is not believed."""
    return item(name, expected, **{modality: "data:image/png;base64," + base64.b64encode(data).decode()})


def job(name: str, expected: str, body: Any, **headers: str) -> Request:
    """A request that creates a job, from JSON or from the bytes of it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(name, "POST", "/v1/jobs", expected, content, {"Content-Type": "application/json", **headers})
