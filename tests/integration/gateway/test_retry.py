"""Retrying failed items: only what failed runs again, and afterwards counters equal rows."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.models import ItemError, Job, JobStage, Shard
from shared.jobs.states import ENDED_SHARDS, ShardState
from shared.queues import Queue, Stage
from tests.integration.gateway.conftest import Pools

MakeRequest = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("no_other_jobs")


def check_counters(sessions: Sessions, job_id: str) -> dict[tuple[str, int], Shard]:
    """Asserts that a job's counters are what its rows say; returns its shards by stage and index."""
    with sessions() as session:
        job = session.get_one(Job, job_id)
        shards = list(session.scalars(select(Shard).where(Shard.job_id == job_id)))
        stages = {row.stage: row for row in session.scalars(select(JobStage).where(JobStage.job_id == job_id))}
        unplanned = session.scalars(
            select(ItemError).where(
                ItemError.job_id == job_id, ItemError.shard_index.is_(None), ItemError.modality == ""
            )
        ).all()
    assert job.shards_open == sum(shard.state not in ENDED_SHARDS for shard in shards)
    assert stages.keys() == {shard.stage for shard in shards}
    for name, stage in stages.items():
        own = [shard for shard in shards if shard.stage == name]
        assert stage.shards_total == len(own)
        assert stage.shards_done == sum(shard.state == ShardState.DONE for shard in own)
        assert stage.shards_failed == sum(shard.state == ShardState.FAILED for shard in own)
        assert stage.items_done == sum(shard.result.get("items_done", 0) for shard in own)
        assert stage.items_cached == sum(shard.result.get("items_cached", 0) for shard in own)
    assert job.items_succeeded == sum(shard.result.get("succeeded", 0) for shard in shards)
    assert job.items_failed == len(unplanned) + sum(shard.result.get("failed", 0) for shard in shards)
    return {(shard.stage, shard.index): shard for shard in shards}


def items_of(client: httpx.Client, id: str) -> tuple[str, dict[str, int]]:
    """A job's status and item counts."""
    job = client.get(f"/v1/jobs/{id}").json()
    return job["status"], job["items"]


def test_only_slices_with_errors_run_again(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions, hints: list[set[Queue]]
) -> None:
    items = [*features_request(12)["items"], {"id": "item-0", "text": "twice"}]
    id = client.post("/v1/jobs", json=features_request(items=items, shard_size=4)).json()["id"]
    pools.faulty = {5, 6}
    pools.run()
    pools.faulty = set()
    status, counts = items_of(client, id)
    assert (status, counts) == ("succeeded", {"total": 13, "succeeded": 10, "partial": 0, "failed": 3})
    before = check_counters(sessions, id)
    hints.clear()

    job = client.post(f"/v1/jobs/{id}/retry").json()

    assert (job["status"], job["finished_at"], job["error"]) == ("running", None, None)
    assert job["items"] == {"total": 13, "succeeded": 8, "partial": 0, "failed": 1}
    assert hints == [{Queue.TEXT}]
    after = check_counters(sessions, id)
    states = {place: shard.state for place, shard in after.items() if shard.state != ShardState.DONE}
    assert states == {("text", 1): ShardState.READY, ("fusion", 1): ShardState.BLOCKED}
    assert after["fusion", 1].waiting_on == 1
    assert after["fusion", 0].result_key == before["fusion", 0].result_key
    assert [e["code"] for e in client.get(f"/v1/jobs/{id}/errors").json()["data"]] == ["duplicate_id"]

    assert pools.run() == 2
    assert items_of(client, id) == ("succeeded", {"total": 13, "succeeded": 12, "partial": 0, "failed": 1})
    check_counters(sessions, id)
    again = client.post(f"/v1/jobs/{id}/retry")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "nothing_to_retry")


def test_shards_that_failed_run_again_with_all_their_attempts(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions
) -> None:
    id = client.post("/v1/jobs", json=features_request(8, shard_size=4)).json()["id"]
    assert pools.fail(Queue.TEXT) == 2
    pools.faulty = set(range(8))
    pools.run(Queue.FUSION)
    pools.faulty = set()
    assert items_of(client, id)[0] == "failed"
    assert client.get(f"/v1/jobs/{id}").json()["error"]["code"] == "every_item_failed"
    client.post(f"/v1/jobs/{id}/retry")
    shards = check_counters(sessions, id)
    assert {shard.state for place, shard in shards.items() if place[0] == "text"} == {ShardState.READY}
    assert {(shard.attempts, shard.error_code) for shard in shards.values()} == {(0, None)}
    pools.run()
    assert items_of(client, id) == ("succeeded", {"total": 8, "succeeded": 8, "partial": 0, "failed": 0})
    check_counters(sessions, id)


def test_fusion_that_failed_runs_again_alone(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions
) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    pools.run(Queue.TEXT)
    pools.fail(Queue.FUSION)
    assert items_of(client, id) == ("failed", {"total": 4, "succeeded": 0, "partial": 0, "failed": 4})
    check_counters(sessions, id)
    client.post(f"/v1/jobs/{id}/retry")
    shards = check_counters(sessions, id)
    assert (shards["text", 0].state, shards["fusion", 0].state) == (ShardState.DONE, ShardState.READY)
    pools.run()
    assert items_of(client, id) == ("succeeded", {"total": 4, "succeeded": 4, "partial": 0, "failed": 0})
    check_counters(sessions, id)


def test_a_job_that_was_stopped_in_the_middle_goes_on(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions
) -> None:
    id = client.post("/v1/jobs", json=features_request(40, shard_size=4)).json()["id"]
    with sessions.begin() as session:
        first, second = engine.claim(session, Queue.TEXT, "worker-test", limit=2)
    with sessions.begin() as session:
        engine.start(session, first)
        engine.fail_job(session, first, "encoder_unavailable", "It cannot be loaded.")
    assert items_of(client, id)[0] == "failed"
    held = client.post(f"/v1/jobs/{id}/retry")
    assert (held.status_code, held.json()["error"]["code"]) == (409, "job_not_finished")
    with sessions.begin() as session:
        engine.release(session, second)
    client.post(f"/v1/jobs/{id}/retry")
    shards = check_counters(sessions, id)
    assert {place[0]: shard.state for place, shard in shards.items()} == {"text": "ready", "fusion": "blocked"}
    assert len({shard.vtime for place, shard in shards.items() if place[0] == "text"}) == 10
    pools.run()
    assert items_of(client, id)[1]["succeeded"] == 40
    check_counters(sessions, id)


def test_a_job_that_missed_its_deadline_gets_as_much_time_again(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions
) -> None:
    body = features_request(8, shard_size=4, timeout_seconds=3600)
    id = client.post("/v1/jobs", json=body).json()["id"]
    with sessions.begin() as session:
        session.execute(update(Job).values(deadline_at=func.clock_timestamp()))
    with sessions.begin() as session:
        assert engine.end_overdue(session)
    job = client.get(f"/v1/jobs/{id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "deadline_exceeded")
    retried = client.post(f"/v1/jobs/{id}/retry").json()
    assert 3590 < retried["deadline_at"] - time.time() < 3610
    pools.run()
    assert items_of(client, id) == ("succeeded", {"total": 8, "succeeded": 8, "partial": 0, "failed": 0})
    check_counters(sessions, id)


def test_extraction_waits_for_a_fit_that_runs_again(
    client: httpx.Client, features_request: MakeRequest, pools: Pools, sessions: Sessions
) -> None:
    body = features_request(8, shard_size=4, encoders={"text": "word2vec", "image": None, "audio": None})
    id = client.post("/v1/jobs", json=body).json()["id"]
    assert pools.fail(Queue.TEXT) == 1
    assert items_of(client, id)[0] == "failed"
    client.post(f"/v1/jobs/{id}/retry")
    shards = check_counters(sessions, id)
    assert {place: (shard.state, shard.waiting_on) for place, shard in shards.items()} == {
        ("fit", 0): ("ready", 0), ("text", 0): ("blocked", 1), ("text", 1): ("blocked", 1),
        ("fusion", 0): ("blocked", 1), ("fusion", 1): ("blocked", 1),
    }  # fmt: skip


def test_a_plan_that_failed_is_made_again(
    client: httpx.Client, pools: Pools, sessions: Sessions, hints: list[set[Queue]]
) -> None:
    file = client.post("/v1/files", files={"file": ("m.jsonl", b'{"id": "a", "text": "x"}\n')}).json()["id"]
    id = client.post("/v1/jobs", json={"input": {"file_id": file}}).json()["id"]
    pools.fail(Queue.PLAN, "invalid_manifest")
    job = client.get(f"/v1/jobs/{id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_manifest")
    hints.clear()
    job = client.post(f"/v1/jobs/{id}/retry").json()
    assert (job["status"], job["error"], job["stages"]["plan"]["shards_failed"]) == ("queued", None, 0)
    assert hints == [{Queue.PLAN}]
    assert check_counters(sessions, id)[Stage.PLAN, 0].state == ShardState.READY


@pytest.mark.parametrize(("end", "code"), [("/cancel", "job_cancelled"), ("", "job_not_finished")])
def test_what_cannot_be_retried_is_said(
    client: httpx.Client, features_request: MakeRequest, end: str, code: str
) -> None:
    id = client.post("/v1/jobs", json=features_request()).json()["id"]
    if end:
        client.post(f"/v1/jobs/{id}{end}")
    answer = client.post(f"/v1/jobs/{id}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)


@given(
    faulty=st.sets(st.integers(0, 11)),
    broken=st.lists(st.sampled_from([Queue.TEXT, Queue.FUSION]), max_size=2),
    finally_faulty=st.sets(st.integers(0, 11), max_size=3),
)
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_failed_the_counters_equal_the_rows(
    client: httpx.Client,
    pools: Pools,
    sessions: Sessions,
    faulty: set[int],
    broken: list[Queue],
    finally_faulty: set[int],
) -> None:
    items = [{"id": f"item-{i}", "text": f"text {i}"} for i in range(12)]
    encoders = {"text": "all-minilm-l6-v2", "image": None, "audio": None}
    id = client.post("/v1/jobs", json={"items": items, "encoders": encoders, "shard_size": 3}).json()["id"]
    pools.faulty = set(faulty)
    for queue in broken:
        if queue is Queue.FUSION:
            pools.run(Queue.TEXT)
        pools.fail(queue)
    pools.run()
    pools.faulty = set(finally_faulty)
    check_counters(sessions, id)
    retried = client.post(f"/v1/jobs/{id}/retry")
    assert retried.status_code == (200 if faulty or broken else 409)
    check_counters(sessions, id)
    pools.run()
    check_counters(sessions, id)
    untouched = {i for i in finally_faulty if not (broken or i // 3 in {j // 3 for j in faulty})}
    _, counts = items_of(client, id)
    assert counts["failed"] == len(finally_faulty - untouched)
    assert counts["succeeded"] + counts["failed"] == 12
    pools.faulty = set()
