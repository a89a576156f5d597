"""Sending the cases, and what came of each."""

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from typing import Any

import httpx

from shared.testing.jobs import wait_for
from shared.testing.web import Website
from tests.corpus import archives, images, items, manifests, requests, sounds, uploads, wires
from tests.corpus.cases import OK, Case, Line, Manifest, Request, Wire
from tests.corpus.platform import ENCODERS, Platform

#: Good items among the bad ones: nothing that happens to their neighbours is their trouble.
_NEIGHBOUR = b'{"id": "neighbour-%d", "text": "a good neighbour", "image": "%s"}'
_EVERY = 10


def all_cases(site: Website, others_file: str, bucket: str) -> list[Case]:
    """The corpus, for a platform with this site to fetch from, this file of another tenant, and this bucket."""
    lines = [*images.cases(), *sounds.cases(), *items.cases(site, others_file)]
    files = [*manifests.cases(), *archives.cases(), *uploads.cases()]
    return [*lines, *files, *requests.cases(bucket), *wires.cases()]


def upload(client: httpx.Client, data: bytes) -> str:
    """A file's id."""
    answer = client.post("/v1/files", files={"file": ("corpus", data)})
    return str(answer.raise_for_status().json()["id"])


def run(platform: Platform, cases: Sequence[Case]) -> dict[str, str]:
    """What came of each case, by its name. Raises AssertionError if good neighbours of bad lines suffered."""
    jobs = {case.name: _submit(platform.client, case.data) for case in cases if isinstance(case, Manifest)}
    found = _run_lines(platform.client, [case for case in cases if isinstance(case, Line)])
    for case in cases:
        if isinstance(case, Request):
            found[case.name] = _send(platform.client, case)
        elif isinstance(case, Wire):
            found[case.name] = _write(platform.address, case.data)
    for name, id in jobs.items():
        found[name] = _outcome(platform.client, id)
    return found


def _submit(client: httpx.Client, manifest: bytes) -> str:
    body = {"input": {"file_id": upload(client, manifest)}, "encoders": ENCODERS, "shard_size": 64}
    return str(client.post("/v1/jobs", json=body).raise_for_status().json()["id"])


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    """The job once it has ended."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{id}").json()
        return job if job["status"] in {"succeeded", "failed"} else None

    return wait_for(look, seconds=120, what=f"the end of {id}")


def _errors(client: httpx.Client, id: str) -> Iterable[dict[str, Any]]:
    after: dict[str, str] = {}
    while True:
        page = client.get(f"/v1/jobs/{id}/errors", params={"limit": 1000, **after}).raise_for_status().json()
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}


def _run_lines(client: httpx.Client, cases: Sequence[Line]) -> dict[str, str]:
    """All lines as one manifest with good neighbours in between."""
    lines: list[bytes] = []
    places: dict[int, str] = {}
    picture = items.GIF.encode()
    for number, case in enumerate(cases):
        if number % _EVERY == 0:
            lines.append(_NEIGHBOUR % (number, picture))
        places[len(lines)] = case.name
        lines.append(case.line)
    id = _submit(client, b"\n".join(lines))
    job = ended(client, id)
    assert job["status"] == "succeeded", job["error"]
    codes: dict[int, str] = {}
    for error in _errors(client, id):
        if error["code"] != "no_usable_modality":
            codes.setdefault(error["item_index"], error["code"])
    assert job["items"]["total"] == len(lines)
    assert codes.keys() <= places.keys(), "a good neighbour has an error"
    return {name: codes.get(place, OK) for place, name in places.items()}


def _outcome(client: httpx.Client, id: str) -> str:
    """The error code of a job, or its items with `ok` or their first error."""
    job = ended(client, id)
    if job["status"] == "failed":
        return str(job["error"]["code"])
    results = client.get(f"/v1/jobs/{id}/results").raise_for_status().text
    errors = [(e["item_id"], e["code"]) for e in _errors(client, id) if e["code"] != "no_usable_modality"]
    partial = {item for item, _ in errors}
    good = [(item, OK) for item in _ids(results) if item not in partial or (item, "duplicate_id") in errors]
    return ", ".join(f"{item} {code}" for item, code in [*good, *errors])


def _ids(results: str) -> list[str]:
    return [json.loads(line)["id"] for line in results.split("\n") if line]


def _send(client: httpx.Client, case: Request) -> str:
    headers: Mapping[str, bytes] = {name: value.encode("latin-1") for name, value in case.headers.items()}
    answer = client.request(case.method, case.path, content=case.content, headers=headers)
    return _said(answer.status_code, answer.content, answer.headers.get("content-type", ""))


def _said(status: int, body: bytes, content_type: str) -> str:
    """An answer in words: its status, and the error's code or the file's name if there is one."""
    if not content_type.startswith("application/json"):
        return str(status)
    content = json.loads(body)
    word = content["error"]["code"] if status >= 400 else content.get("filename", "")
    return f"{status} {word}".strip()


def _write(address: tuple[str, int], data: bytes) -> str:
    """The status of the answer to raw bytes, with the error's code where the answer is the application's."""
    with socket.create_connection(address, timeout=1) as connection:
        with suppress(OSError):  # refused before all was written; the answer may be there all the same
            connection.sendall(data)
        try:
            answer = HTTPResponse(connection)
            answer.begin()
            body = answer.read()
        except (OSError, HTTPException):
            return "no answer"
    return _said(answer.status, body, answer.headers.get("Content-Type", ""))
