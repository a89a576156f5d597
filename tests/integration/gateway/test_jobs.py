"""Jobs over HTTP: accepted once, checked at the door, listed, cancelled, deleted, never another tenant's."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from services.gateway.deps import Services
from shared.db import Sessions
from shared.jobs.models import Job, JobFile, Shard
from shared.queues import Queue, Stage
from shared.storage import keys
from shared.storage.objects import ObjectStore

MakeRequest = Callable[..., dict[str, Any]]


def shards_of(sessions: Sessions, job_id: str) -> list[Shard]:
    """A job's shards."""
    with sessions() as session:
        return list(session.scalars(select(Shard).where(Shard.job_id == job_id).order_by(Shard.stage, Shard.index)))


@pytest.fixture
def inline_plan_bytes(services: Services) -> Iterator[Callable[[int], None]]:
    """Sets up to which size an inline job is planned at the door."""
    engine = services.settings.engine
    before = engine.inline_plan_bytes

    def set_to(size: int) -> None:
        engine.inline_plan_bytes = size

    yield set_to
    engine.inline_plan_bytes = before


def test_a_small_job_is_planned_as_it_is_accepted(
    client: httpx.Client, features_request: MakeRequest, sessions: Sessions, hints: list[set[Queue]]
) -> None:
    hints.clear()
    answer = client.post("/v1/jobs", json=features_request(10, shard_size=4, metadata={"project": "p"}))
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["items"]["total"], job["metadata"]) == ("running", 10, {"project": "p"})
    assert {name: stage["shards_total"] for name, stage in job["stages"].items()} == {"text": 3, "fusion": 3}
    assert "items" not in job["request"]
    assert [shard.state for shard in shards_of(sessions, job["id"])] == ["blocked"] * 3 + ["ready"] * 3
    assert hints == [{Queue.TEXT}]
    assert client.get(f"/v1/jobs/{job['id']}").json() == job


def test_a_larger_inline_job_is_left_to_the_dispatcher(
    client: httpx.Client,
    features_request: MakeRequest,
    sessions: Sessions,
    store: ObjectStore,
    hints: list[set[Queue]],
    inline_plan_bytes: Callable[[int], None],
) -> None:
    hints.clear()
    inline_plan_bytes(100)
    job = client.post("/v1/jobs", json=features_request(10)).json()
    assert (job["status"], list(job["stages"])) == ("queued", ["plan"])
    [shard] = shards_of(sessions, job["id"])
    assert (shard.stage, shard.queue, shard.index, shard.state) == (Stage.PLAN, Queue.PLAN, 0, "ready")
    assert hints == [{Queue.PLAN}]
    lines = [json.loads(line) for line in store.get(keys.inline_items(job["id"])).splitlines()]
    assert [line["id"] for line in lines] == [f"item-{i}" for i in range(10)]


def test_items_that_are_wrong_do_not_hold_up_the_others(client: httpx.Client) -> None:
    items = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"id": "b", "text": "z", "image": "file-unknown"}]
    job = client.post("/v1/jobs", json={"items": items}).json()
    assert (job["items"]["total"], job["items"]["failed"]) == (3, 1)
    errors = client.get(f"/v1/jobs/{job['id']}/errors").json()["data"]
    assert [(e["item_index"], e["item_id"], e["modality"]) for e in errors] == [(1, "a", None), (2, "b", "image")]
    assert errors[0]["code"] == "duplicate_id"


def test_a_key_makes_a_repeated_request_return_the_first_job(
    client: httpx.Client, features_request: MakeRequest, stranger: httpx.Client
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=features_request(), headers=headers)
    again = client.post("/v1/jobs", json=features_request(), headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/v1/jobs", json=features_request(11), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    theirs = stranger.post("/v1/jobs", json=features_request(11), headers=headers)
    assert theirs.status_code == 202


def test_the_same_key_at_the_same_time_makes_one_job(
    client: httpx.Client, features_request: MakeRequest, sessions: Sessions
) -> None:
    def post(_: int) -> httpx.Response:
        return client.post("/v1/jobs", json=features_request(), headers={"Idempotency-Key": "race"})

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    with sessions() as session:
        assert len(session.scalars(select(Job).where(Job.idempotency_key == "race")).all()) == 1


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"encoders": {"text": "no-such"}}, 422, "unknown_encoder", "encoders.text"),
        ({"encoders": {"text": "mobilenet_v2"}}, 422, "unknown_encoder", "encoders.text"),
        ({"fusion": {"method": "weighted", "weights": {"audio": 1}}}, 422, "invalid_request", "fusion.weights.audio"),
        ({"fusion": {"method": "mean"}}, 422, "invalid_request", "fusion.method"),
        ({"fusion": {"method": "gated"}}, 422, "invalid_request", "fusion.method"),
        ({"type": "features!"}, 422, "invalid_request", "type"),
        ({"shard_size": 0}, 422, "invalid_request", "shard_size"),
        ({"timeout_seconds": 0}, 422, "invalid_request", "timeout_seconds"),
        ({"colour": "red"}, 422, "invalid_request", "colour"),
        ({"metadata": {"a": "nul\x00"}}, 422, "invalid_request", "metadata.a"),
        ({"items": [{"id": "a", "text": 7}]}, 422, "invalid_request", "items.0.text"),
        ({"items": None, "input": {"file_id": "file-none"}}, 404, "file_not_found", "input.file_id"),
        ({"items": None, "input": {"s3_prefix": "s3://elsewhere/x/"}}, 422, "prefix_not_allowed", "input.s3_prefix"),
    ],
)
def test_what_is_wrong_is_said_at_the_door(
    client: httpx.Client, features_request: MakeRequest, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = client.post("/v1/jobs", json={**features_request(), **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"]
    assert "<" not in error["message"], "Python's names of enum members mean nothing to callers"


def test_prefixes_are_limited_to_the_tenants_imports(client: httpx.Client, services: Services) -> None:
    bucket = services.settings.s3_bucket

    def post(prefix: str) -> int:
        return client.post("/v1/jobs", json={"input": {"s3_prefix": prefix}}).status_code

    services.settings.import_buckets = ["shared-data", "per-tenant/{tenant}", bucket]
    try:
        assert post(f"s3://{bucket}/imports/default/2026/") == 202
        assert post("s3://shared-data/anything/") == 202
        assert post("s3://per-tenant/default/x/") == 202
        for refused in (
            f"s3://{bucket}/imports/default2/", f"s3://{bucket}/blobs/default/", "s3://shared-data-2/x/",
            "s3://per-tenant/other/", f"s3://{bucket}/imports/default/../other/",
        ):  # fmt: skip
            assert post(refused) == 422, refused
    finally:
        services.settings.import_buckets = []


def test_a_file_of_another_tenant_is_not_found(
    client: httpx.Client, stranger: httpx.Client, sessions: Sessions
) -> None:
    theirs = stranger.post("/v1/files", files={"file": ("m.jsonl", b'{"id": "a", "text": "x"}')}).json()["id"]
    answer = client.post("/v1/jobs", json={"input": {"file_id": theirs}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    inline = client.post("/v1/jobs", json={"items": [{"id": "a", "text": "x", "image": theirs}]}).json()
    [error] = client.get(f"/v1/jobs/{inline['id']}/errors").json()["data"]
    assert (error["item_id"], error["modality"]) == ("a", "image")
    with sessions() as session:
        assert session.get(JobFile, (inline["id"], theirs)) is None


def test_limits_of_items_bytes_and_waiting_shards(
    client: httpx.Client, features_request: MakeRequest, services: Services
) -> None:
    limits = services.settings.limits
    before = limits.inline_items, limits.waiting_shards
    try:
        limits.inline_items = 5
        many = client.post("/v1/jobs", json=features_request(6))
        assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_items")
        limits.inline_items, limits.waiting_shards = 100, 1
        client.post("/v1/jobs", json=features_request(8, shard_size=4))
        busy = client.post("/v1/jobs", json=features_request())
        assert (busy.status_code, busy.json()["error"]["code"]) == (429, "queue_full")
        assert int(busy.headers["retry-after"]) > 0
    finally:
        limits.inline_items, limits.waiting_shards = before
    large = client.post("/v1/jobs", json={"items": [{"id": "a", "text": "x" * limits.json_bytes}]})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")


def test_jobs_have_the_time_that_they_ask_for_within_the_limit(
    client: httpx.Client, features_request: MakeRequest, services: Services
) -> None:
    def seconds(**options: Any) -> int | None:
        job: dict[str, Any] = client.post("/v1/jobs", json=features_request(**options)).json()
        return job["deadline_at"] and job["deadline_at"] - job["created_at"]

    limits = services.settings.limits
    assert seconds() is None
    assert seconds(timeout_seconds=100) in {100, 101}
    limits.job_seconds = 50
    try:
        assert seconds() in {50, 51}
        assert seconds(timeout_seconds=20) in {20, 21}
        refused = client.post("/v1/jobs", json=features_request(timeout_seconds=51))
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "timeout_seconds")
    finally:
        limits.job_seconds = 0


def test_lists_filter_and_go_page_by_page(
    client_of: Callable[..., httpx.Client], features_request: MakeRequest
) -> None:
    client = client_of("lister")
    made = [
        client.post("/v1/jobs", json=features_request(metadata={"parity": str(i % 2), "n": str(i)})).json()["id"]
        for i in range(5)
    ]
    client.post(f"/v1/jobs/{made[0]}/cancel")
    newest_first = sorted(made, reverse=True)

    def ids(**params: Any) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]

    assert ids() == newest_first
    assert ids(limit=2) == newest_first[:2]
    assert ids(limit=2, after=newest_first[1]) == newest_first[2:4]
    assert ids(limit=2, after=newest_first[3]) == newest_first[4:]
    assert client.get("/v1/jobs", params={"limit": 5}).json()["has_more"] is False
    assert ids(status="cancelled") == [made[0]]
    assert ids(status=["cancelled", "running"]) == newest_first
    assert ids(**{"metadata[parity]": "1"}) == [made[3], made[1]]
    assert ids(**{"metadata[parity]": "1", "metadata[n]": "3"}) == [made[3]]
    assert ids(type="features", status="succeeded") == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", ""), ("GET", "/events"), ("GET", "/errors"),
        ("GET", "/results"), ("GET", "/results/parts"),
    ],
)  # fmt: skip
def test_another_tenants_job_is_not_there(
    client: httpx.Client, stranger: httpx.Client, features_request: MakeRequest, method: str, path: str
) -> None:
    id = client.post("/v1/jobs", json=features_request()).json()["id"]
    answer = stranger.request(method, f"/v1/jobs/{id}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    assert client.get(f"/v1/jobs/{id}").json()["status"] == "running"


def test_cancelling_ends_what_waits_and_may_be_repeated(
    client: httpx.Client, features_request: MakeRequest, sessions: Sessions
) -> None:
    id = client.post("/v1/jobs", json=features_request(8, shard_size=4)).json()["id"]
    job = client.post(f"/v1/jobs/{id}/cancel").json()
    assert (job["status"], job["cancel_requested_at"] is not None) == ("cancelled", True)
    assert {shard.state for shard in shards_of(sessions, id)} == {"cancelled"}
    assert client.post(f"/v1/jobs/{id}/cancel").json() == job


def test_only_ended_jobs_are_deleted_and_their_key_is_free_again(
    client: httpx.Client, features_request: MakeRequest
) -> None:
    headers = {"Idempotency-Key": "reborn"}
    id = client.post("/v1/jobs", json=features_request(), headers=headers).json()["id"]
    refused = client.delete(f"/v1/jobs/{id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_finished")
    client.post(f"/v1/jobs/{id}/cancel")
    assert client.delete(f"/v1/jobs/{id}").json() == {"id": id, "object": "job", "deleted": True}
    assert client.get(f"/v1/jobs/{id}").status_code == 404
    assert id not in {job["id"] for job in client.get("/v1/jobs").json()["data"]}
    again = client.post("/v1/jobs", json=features_request(3), headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] != id
