"""Too much waiting: refused by bytes, shards and age, per tenant, with an honest time to come back."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from services.gateway.deps import Services
from shared.db import Sessions
from shared.jobs import backlog, engine
from shared.jobs.models import Job, JobStage
from shared.queues import Queue
from shared.settings import Limits
from tests.integration.gateway.conftest import Pools

MakeRequest = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("no_other_jobs")

MANIFEST = b'{"id": "a", "text": "x"}\n'


@pytest.fixture
def limits(services: Services) -> Iterator[Limits]:
    """The gateway's limits, as they were afterwards."""
    limits = services.settings.limits
    before = limits.model_copy()
    yield limits
    for name in type(limits).model_fields:
        setattr(limits, name, getattr(before, name))


def upload(client: httpx.Client, content: bytes = MANIFEST) -> str:
    """An uploaded file's id."""
    id: str = client.post("/v1/files", files={"file": ("m.jsonl", content)}).json()["id"]
    return id


def assert_full(answer: httpx.Response) -> int:
    """Asserts that the queue is full; returns when to come back."""
    assert answer.status_code == 429, answer.text
    assert answer.json()["error"]["code"] == "queue_full"
    return int(answer.headers["retry-after"])


def test_the_input_of_unfinished_jobs_is_limited_in_bytes(
    client: httpx.Client, stranger: httpx.Client, limits: Limits
) -> None:
    limits.queued_bytes = 2 * len(MANIFEST)
    body = {"input": {"file_id": upload(client)}}
    first, second = (client.post("/v1/jobs", json=body).json() for _ in range(2))
    assert first["input_bytes"] == second["input_bytes"] == len(MANIFEST)
    assert assert_full(client.post("/v1/jobs", json=body)) >= backlog.SOONEST_SECONDS
    theirs = {"input": {"file_id": upload(stranger)}}
    assert stranger.post("/v1/jobs", json=theirs).status_code == 202
    client.post(f"/v1/jobs/{first['id']}/cancel")
    assert client.post("/v1/jobs", json=body).status_code == 202


def test_the_body_and_the_files_that_it_names_count(client: httpx.Client, limits: Limits) -> None:
    picture = upload(client, b"\x89PNG" + bytes(1000))
    items = [{"id": "a", "image": picture}, {"id": "b", "image": picture, "text": "x" * 500}]
    job = client.post("/v1/jobs", json={"items": items}).json()
    assert 1004 + 500 < job["input_bytes"] < 1004 + 700
    limits.queued_bytes = job["input_bytes"]
    assert_full(client.post("/v1/jobs", json={"items": [{"id": "a", "text": "x"}]}))


def test_a_job_that_would_never_fit_is_too_large(client: httpx.Client, limits: Limits) -> None:
    limits.queued_bytes = len(MANIFEST) - 1
    answer = client.post("/v1/jobs", json={"input": {"file_id": upload(client)}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_repeated_request_finds_its_job_in_a_full_queue(client: httpx.Client, limits: Limits) -> None:
    body, headers = {"input": {"file_id": upload(client)}}, {"Idempotency-Key": "full"}
    limits.queued_bytes = len(MANIFEST)
    first = client.post("/v1/jobs", json=body, headers=headers)
    again = client.post("/v1/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]


def test_many_at_once_do_not_exceed_the_limit_together(
    client: httpx.Client, limits: Limits, sessions: Sessions
) -> None:
    body = {"input": {"file_id": upload(client)}}
    limits.queued_bytes = 3 * len(MANIFEST)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/jobs", json=body), range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * 9
    with sessions() as session:
        assert session.scalar(select(func.sum(Job.input_bytes))) == limits.queued_bytes


def test_a_job_that_waits_too_long_keeps_others_out_until_it_is_begun(
    client: httpx.Client,
    features_request: MakeRequest,
    limits: Limits,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.post("/v1/jobs", json=features_request(4))
    with sessions.begin() as session:
        ago = func.clock_timestamp() - timedelta(seconds=limits.waiting_seconds + 1)
        session.execute(update(Job).values(created_at=ago))
    assert client.post("/v1/jobs", json=features_request(4)).status_code == 202, "the backlog is small"
    monkeypatch.setattr(backlog, "SMALL_BACKLOG", 3)
    assert_full(client.post("/v1/jobs", json=features_request(4)))
    with sessions.begin() as session:
        [lease] = engine.claim(session, Queue.TEXT, "worker")
        engine.start(session, lease)
    assert client.post("/v1/jobs", json=features_request(4)).status_code == 202


@pytest.mark.parametrize(
    ("over", "seconds"),
    [("queued_bytes", 1200), ("waiting_shards", 800)],  # until the job has ended; eight shards of it, at 100 s each
)
def test_when_to_come_back_goes_by_the_pace_so_far(
    client: httpx.Client,
    features_request: MakeRequest,
    limits: Limits,
    pools: Pools,
    sessions: Sessions,
    over: str,
    seconds: int,
) -> None:
    input_bytes = client.post("/v1/jobs", json=features_request(8, shard_size=1)).json()["input_bytes"]
    for lease in pools.claim(Queue.TEXT)[:4]:
        pools.finish(lease)
    with sessions.begin() as session:
        ago = func.clock_timestamp() - timedelta(seconds=400)
        session.execute(update(JobStage).where(JobStage.stage == "text").values(started_at=ago))
    setattr(limits, over, {"queued_bytes": input_bytes, "waiting_shards": 4}[over])
    assert assert_full(client.post("/v1/jobs", json=features_request(8))) == pytest.approx(seconds, rel=0.02)
