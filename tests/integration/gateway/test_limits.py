"""Every limit at the door: which status and code, when to come back, and that nothing is left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from services.gateway.app import create_app
from services.gateway.deps import Services
from shared.db import Sessions
from shared.errors import StorageFullError, UnavailableError
from shared.ids import new_id
from shared.jobs.models import Base, Blob, File, Job, Shard
from shared.storage.objects import ObjectStore, make_store
from shared.worker.control import is_away

MANIFEST = b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n'

Send = Callable[[TestClient, str], httpx.Response]


@contextmanager
def gateway(services: Services, limits: dict[str, Any], **settings: Any) -> Iterator[TestClient]:
    """A gateway with other limits, called from an address of its own."""
    own = services.settings.model_copy(
        update={"limits": services.settings.limits.model_copy(update=limits), **settings}
    )
    with TestClient(create_app(replace(services, settings=own)), client=(new_id("client"), 50000)) as client:
        yield client


def items(count: int, size: int = 1) -> dict[str, Any]:
    """A job over so many texts of so many characters."""
    texts = [{"id": f"item-{i}", "text": "x" * size} for i in range(count)]
    return {"items": texts, "encoders": {"image": None, "audio": None}}


def post_items(count: int, size: int = 1, **options: Any) -> Send:
    return lambda client, file: client.post("/v1/jobs", json={**items(count, size), **options})


def post_manifest(client: TestClient, file: str) -> httpx.Response:
    return client.post("/v1/jobs", json={"input": {"file_id": file}})


def post_file(client: TestClient, file: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": ("data", bytes(100_000))})


def post_file_unannounced(client: TestClient, file: str) -> httpx.Response:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
        yield bytes(100_000)
        yield b"\r\n--b--\r\n"

    return client.post("/v1/files", content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"})


def post_key(client: TestClient, file: str) -> httpx.Response:
    return client.post("/v1/keys", json={"name": "x" * 2000})


def second(send: Send) -> Send:
    """The answer to the same request sent again."""

    def twice(client: TestClient, file: str) -> httpx.Response:
        assert send(client, file).status_code < 300
        return send(client, file)

    return twice


EMPTY_DISK = 2**62


@pytest.mark.parametrize(
    ("limits", "send", "status", "code", "created"),
    [
        ({"upload_bytes": 1000}, post_file, 413, "file_too_large", {}),
        ({"upload_bytes": 1000}, post_file_unannounced, 413, "file_too_large", {}),
        ({"json_bytes": 1000}, post_items(1, 2000), 413, "too_large", {}),
        ({"json_bytes": 1000}, post_key, 413, "too_large", {}),
        ({"inline_items": 5}, post_items(6), 413, "too_many_items", {}),
        ({"items": 5}, post_items(6), 413, "too_many_items", {}),
        ({"queued_bytes": 10}, post_manifest, 413, "too_large", {}),
        ({"queued_bytes": 1000}, post_items(1, 2000), 413, "too_large", {}),
        ({"queued_bytes": 60}, second(post_manifest), 429, "queue_full", {Job: 1, Shard: 1}),
        ({"queued_bytes": 3000}, second(post_items(1, 2000)), 429, "queue_full", {Job: 1, Shard: 2}),
        ({"waiting_shards": 2}, second(post_items(2, shard_size=1)), 429, "queue_full", {Job: 1, Shard: 4}),
        ({"requests_per_second": 0.1, "request_burst": 1}, second(post_items(1)), 429, "rate_limit_exceeded",
         {Job: 1, Shard: 2}),
        ({"job_seconds": 60}, post_items(1, timeout_seconds=61), 422, "invalid_request", {}),
        ({"min_free_bytes": EMPTY_DISK}, post_file, 507, "storage_full", {}),
        ({"min_free_bytes": EMPTY_DISK}, post_items(1), 507, "storage_full", {}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_other_jobs")
def test_over_a_limit(
    services: Services,
    client: httpx.Client,
    limits: dict[str, Any],
    send: Send,
    status: int,
    code: str,
    created: dict[type[Base], int],
) -> None:
    file = client.post("/v1/files", files={"file": ("m.jsonl", MANIFEST)}).json()["id"]
    before, objects = counts(services.sessions), set(keys_in(services.store))
    settings = {name: limits[name] for name in limits if name == "min_free_bytes"}
    with gateway(services, limits, **settings) as limited:
        answer = send(limited, file)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert len(error["message"]) > 20
    assert ("retry-after" in answer.headers) == (status == 429)
    assert int(answer.headers.get("retry-after", 1)) > 0
    after = counts(services.sessions)
    assert {table: after[table] - before[table] for table in after} == {**dict.fromkeys(after, 0), **created}
    assert len(set(keys_in(services.store)) - objects) == slices(created)


def counts(sessions: Sessions) -> dict[type[Base], int]:
    """How many rows there are."""
    with sessions() as session:
        return {
            table: session.scalar(select(func.count()).select_from(table)) or 0 for table in (Job, Shard, File, Blob)
        }


def keys_in(store: ObjectStore) -> Iterator[str]:
    """What is in the bucket."""
    return (found.key for found in store.list(""))


def slices(created: dict[type[Base], int]) -> int:
    """Objects of the job that was accepted: a slice for each two shards, none for a plan."""
    return created.get(Shard, 0) // 2


# Storage that has no room


class FullStorage(BaseHTTPRequestHandler):
    """An S3 that refuses every write as its class attributes say."""

    status, code = 507, "XMinioStorageFull"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = f"<Error><Code>{self.code}</Code><Message>It is full.</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_PUT()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def full_store(services: Services) -> Iterator[Callable[[int, str], ObjectStore]]:
    """Makes a store whose server answers writes with a status and a code."""
    servers: list[ThreadingHTTPServer] = []

    def make(status: int, code: str) -> ObjectStore:
        handler = type("Handler", (FullStorage,), {"status": status, "code": code})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        return make_store(services.settings.model_copy(update={"s3_endpoint": endpoint}))

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code"),
    [(507, "XMinioStorageFull"), (500, "XMinioStorageFull"), (403, "QuotaExceeded"), (507, "Whatever")],
)
def test_storage_says_in_several_ways_that_it_is_full(full_store: Any, status: int, code: str) -> None:
    store = full_store(status, code)
    with pytest.raises(StorageFullError) as caught:
        store.put("key", b"data")
    assert is_away(caught.value), "workers wait, as in an outage"


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (403, "AccessDenied")])
def test_other_refusals_are_outages(full_store: Any, status: int, code: str) -> None:
    with pytest.raises(UnavailableError):
        full_store(status, code).put("key", b"data")


@pytest.mark.parametrize("send", [post_file, post_items(2), post_items(2, 100_000)], ids=["file", "small", "large"])
@pytest.mark.usefixtures("no_other_jobs")
def test_full_storage_takes_no_files_and_no_jobs(services: Services, full_store: Any, send: Send) -> None:
    before = counts(services.sessions)
    with gateway(replace(services, store=full_store(507, "XMinioStorageFull")), {}) as client:
        answer = send(client, "")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert counts(services.sessions) == before
