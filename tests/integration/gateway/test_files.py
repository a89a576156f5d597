"""Files: streamed in, stored once per content, kept while jobs read them, never another tenant's."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.gateway.deps import Services
from shared.db import Sessions
from shared.jobs.models import Blob
from shared.storage.objects import ObjectStore

Upload = Callable[..., dict[str, Any]]


@pytest.fixture
def upload(client: httpx.Client) -> Upload:
    """Uploads bytes and returns the file's entry."""

    def send(data: bytes, filename: str = "data.bin", via: httpx.Client = client, **fields: str) -> dict[str, Any]:
        answer = via.post("/v1/files", files={"file": (filename, data, "text/html")}, data=fields)
        assert answer.status_code == 200, answer.text
        entry: dict[str, Any] = answer.json()
        return entry

    return send


def objects_of(store: ObjectStore) -> set[str]:
    """The keys of all stored uploads."""
    return {found.key for found in store.list("blobs/")}


def test_an_upload_comes_back_as_it_was(client: httpx.Client, upload: Upload) -> None:
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9000
    entry = upload(data, "cat.png", purpose="media")
    assert entry["bytes"] == len(data)
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert (entry["object"], entry["purpose"], entry["filename"]) == ("file", "media", "cat.png")
    assert client.get(f"/v1/files/{entry['id']}").json() == entry
    content = client.get(f"/v1/files/{entry['id']}/content")
    assert content.content == data
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-type"] == "image/png"
    assert content.headers["content-length"] == str(len(data))


def test_a_large_upload_passes_in_parts(client: httpx.Client, upload: Upload) -> None:
    data = hashlib.shake_256(b"seed").digest(40 * 1024**2)
    entry = upload(data)
    with client.stream("GET", f"/v1/files/{entry['id']}/content") as answer:
        digest = hashlib.sha256()
        for chunk in answer.iter_bytes():
            digest.update(chunk)
    assert digest.hexdigest() == entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_content_type_is_sniffed_not_believed(client: httpx.Client, upload: Upload) -> None:
    entry = upload(b"<script>alert(1)</script>", "page.html")
    assert entry["content_type"] == "text/plain; charset=utf-8"
    content = client.get(f"/v1/files/{entry['id']}/content")
    assert content.headers["content-disposition"].startswith("attachment")


def test_filenames_are_cleaned(client: httpx.Client, upload: Upload) -> None:
    entry = upload(b"x", "../../etc/pass wd\u2028.txt")
    assert entry["filename"] == "pass wd.txt"
    disposition = client.get(f"/v1/files/{entry['id']}/content").headers["content-disposition"]
    assert disposition == "attachment; filename*=UTF-8''pass%20wd.txt"


def test_the_same_content_is_stored_once_and_goes_with_its_last_file(
    client: httpx.Client, upload: Upload, store: ObjectStore, sessions: Sessions
) -> None:
    before = objects_of(store)
    first, second = upload(b"the same", "a"), upload(b"the same", "b")
    assert first["id"] != second["id"]
    assert len(objects_of(store) - before) == 1
    assert client.delete(f"/v1/files/{first['id']}").json() == {"id": first["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{second['id']}/content").content == b"the same"
    client.delete(f"/v1/files/{second['id']}")
    assert objects_of(store) == before
    with sessions() as session:
        assert session.get(Blob, ("default", first["sha256"])) is None
    assert client.get(f"/v1/files/{second['id']}").status_code == 404


def test_the_same_content_of_two_tenants_is_kept_apart(
    client: httpx.Client, stranger: httpx.Client, upload: Upload
) -> None:
    mine, theirs = upload(b"shared bytes"), upload(b"shared bytes", via=stranger)
    client.delete(f"/v1/files/{mine['id']}")
    assert stranger.get(f"/v1/files/{theirs['id']}/content").content == b"shared bytes"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_another_tenants_file_is_not_there(
    client: httpx.Client, stranger: httpx.Client, upload: Upload, method: str, path: str
) -> None:
    entry = upload(b"private")
    answer = stranger.request(method, f"/v1/files/{entry['id']}{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "file_not_found"
    assert entry["id"] not in {file["id"] for file in stranger.get("/v1/files").json()["data"]}
    assert client.get(f"/v1/files/{entry['id']}").status_code == 200


def test_lists_go_page_by_page_newest_first(client_of: Callable[..., httpx.Client], upload: Upload) -> None:
    client = client_of("paging")
    made = [upload(bytes([i]), f"{i}", via=client, purpose="odd" if i % 2 else "even")["id"] for i in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = client.get("/v1/files", params={"limit": 2, **after}).json()
        seen += [file["id"] for file in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == sorted(made, reverse=True)
    odd = client.get("/v1/files", params={"purpose": "odd"}).json()["data"]
    assert [file["filename"] for file in odd] == ["3", "1"]


def test_a_file_is_kept_while_a_job_reads_it(client: httpx.Client, upload: Upload) -> None:
    entry = upload(b'{"id": "a", "text": "x"}\n', "manifest.jsonl")
    assert entry["content_type"] == "application/x-ndjson"
    job = client.post("/v1/jobs", json={"input": {"file_id": entry["id"]}}).json()
    refused = client.delete(f"/v1/files/{entry['id']}")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "file_in_use"
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{entry['id']}").status_code == 200


def test_a_file_that_an_inline_item_names_is_kept_too(client: httpx.Client, upload: Upload) -> None:
    entry = upload(b"\x89PNG\r\n\x1a\npicture", "cat.png")
    job = client.post("/v1/jobs", json={"items": [{"id": "a", "image": entry["id"]}]}).json()
    assert job["status"] == "running"
    assert client.delete(f"/v1/files/{entry['id']}").status_code == 409
    client.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.fixture
def small_limit(services: Services) -> Iterator[int]:
    """Uploads are limited to a little more than two parts of storage."""
    limits = services.settings.limits
    before, limits.upload_bytes = limits.upload_bytes, 35 * 1024**2
    yield limits.upload_bytes
    limits.upload_bytes = before


def test_too_large_is_seen_before_the_body_is_read(client: httpx.Client, small_limit: int) -> None:
    answer = client.post("/v1/files", files={"file": ("big", bytes(small_limit + 2**20))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")


def test_too_large_is_seen_while_streaming(client: httpx.Client, small_limit: int, store: ObjectStore) -> None:
    before = objects_of(store)

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
        for _ in range(small_limit // 2**20 + 3):
            yield bytes(2**20)
        yield b"\r\n--b--\r\n"

    answer = client.post("/v1/files", content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert objects_of(store) == before


def test_a_file_that_breaks_off_is_not_stored(client: httpx.Client, store: ObjectStore) -> None:
    before = objects_of(store)
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf of it'
    answer = client.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_multipart")
    assert objects_of(store) == before


def test_what_is_wrong_behind_the_file_leaves_nothing(client: httpx.Client, store: ObjectStore) -> None:
    before = objects_of(store)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbytes\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nNOT A WORD\r\n--b--\r\n'
    )
    answer = client.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "purpose")
    assert objects_of(store) == before


@pytest.mark.parametrize(
    ("files", "code"), [({"file": ("a", b"")}, "empty_file"), ({"other": ("a", b"x")}, "invalid_request")]
)
def test_forms_without_a_usable_file_are_refused(client: httpx.Client, files: Any, code: str) -> None:
    answer = client.post("/v1/files", files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_little_disk_refuses_uploads(client: httpx.Client, services: Services, app: FastAPI) -> None:
    settings = services.settings
    before, settings.min_free_bytes = settings.min_free_bytes, 2**62
    try:
        answer = client.post("/v1/files", files={"file": ("a", b"x")})
    finally:
        settings.min_free_bytes = before
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")


def test_uploads_and_deletions_of_the_same_content_at_once_lose_nothing(
    client: httpx.Client, upload: Upload, store: ObjectStore
) -> None:
    before = objects_of(store)
    kept: list[str] = []

    def come_and_go(worker: int) -> None:
        for round in range(6):
            id = upload(b"contended", f"{worker}-{round}")["id"]
            if round == 5:
                kept.append(id)
            else:
                assert client.delete(f"/v1/files/{id}").status_code == 200

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(come_and_go, range(4)))
    assert [client.get(f"/v1/files/{id}/content").content for id in kept] == [b"contended"] * 4
    assert len(objects_of(store) - before) == 1
