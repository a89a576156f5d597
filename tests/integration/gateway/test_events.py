"""Following a job: everything that happened, in order, once, resumable, and no longer than the job lasts."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from shared.queues import Queue
from tests.integration.gateway.conftest import Pools

MakeRequest = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("no_other_jobs")


def follow(client: httpx.Client, id: str, after: str | None = None) -> Iterator[ServerSentEvent]:
    """The events of a job until the stream ends."""
    headers = {"Last-Event-ID": after} if after else {}
    with connect_sse(client, "GET", f"/v1/jobs/{id}/events", headers=headers) as source:
        yield from source.iter_sse()


def happened(events: list[ServerSentEvent]) -> list[str]:
    """The types of those that are kept."""
    return [event.event for event in events if event.event != "progress"]


def test_a_stream_tells_everything_and_ends_with_the_job(
    client: httpx.Client, features_request: MakeRequest, pools: Pools
) -> None:
    id = client.post("/v1/jobs", json=features_request(8, shard_size=4)).json()["id"]
    seen: list[ServerSentEvent] = []
    for event in follow(client, id):
        if event.event == "progress" and not any(e.event == "progress" for e in seen):
            pools.run(Queue.TEXT)
        elif event.event == "stage.finished" and event.json()["data"]["stage"] == "text":
            pools.run(Queue.FUSION)
        seen.append(event)
    assert happened(seen) == ["job.queued", "job.running", "stage.finished", "stage.finished", "job.succeeded"]
    kept = [event for event in seen if event.event != "progress"]
    assert [int(event.id) for event in kept] == sorted({int(event.id) for event in kept})
    assert all(json.loads(event.data)["type"] == event.event for event in seen)
    progress = [event.json()["data"] for event in seen if event.event == "progress"]
    assert all(earlier != later for earlier, later in pairwise(progress))
    assert progress[0]["status"] == "running"
    assert progress[0]["stages"]["text"] | {"items_done": 0, "shards_done": 0} == progress[0]["stages"]["text"]


def test_a_stream_resumes_behind_the_last_event(
    client: httpx.Client, features_request: MakeRequest, pools: Pools
) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    pools.run()
    everything = list(follow(client, id))
    assert happened(everything)[-1] == "job.succeeded"
    for place, event in enumerate(everything[:-1]):
        rest = list(follow(client, id, after=event.id))
        assert [e.id for e in rest] == [e.id for e in everything[place + 1 :]]
    over = client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": everything[-1].id})
    assert (over.status_code, over.content) == (204, b"")


def test_progress_has_no_id_on_the_wire(client: httpx.Client, features_request: MakeRequest) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    with client.stream("GET", f"/v1/jobs/{id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        block: list[str] = []
        for line in answer.iter_lines():
            if line:
                block.append(line)
            elif "event: progress" in block:
                break
            else:
                block = []
    assert not any(line.startswith("id:") for line in block)
    client.post(f"/v1/jobs/{id}/cancel")


def test_a_stream_of_a_retried_job_goes_on(client: httpx.Client, features_request: MakeRequest, pools: Pools) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    pools.fail(Queue.TEXT)
    pools.faulty = {0, 1, 2, 3}
    pools.run(Queue.FUSION)
    pools.faulty = set()
    failed = list(follow(client, id))
    assert happened(failed)[-1] == "job.failed"
    client.post(f"/v1/jobs/{id}/retry")
    pools.run()
    rest = happened(list(follow(client, id, after=failed[-1].id)))
    assert (rest[:2], rest[-1]) == (["job.retried", "job.running"], "job.succeeded")


@pytest.mark.parametrize(
    ("params", "accept"), [({}, "application/json"), ({"stream": "false"}, "*/*"), ({"stream": "false"}, "")]
)
def test_json_gives_the_list(
    client: httpx.Client, features_request: MakeRequest, params: dict[str, str], accept: str
) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    answer = client.get(f"/v1/jobs/{id}/events", params=params, headers={"Accept": accept})
    page = answer.json()
    assert [event["type"] for event in page["data"]] == ["job.queued", "job.running"]
    assert {event["object"] for event in page["data"]} == {"job.event"}
    first = client.get(f"/v1/jobs/{id}/events", params={"stream": "false", "limit": 1}).json()
    assert (first["has_more"], first["last_id"]) == (True, page["data"][0]["id"])
    rest = client.get(f"/v1/jobs/{id}/events", params={"stream": "false", "after": first["last_id"]}).json()
    assert rest["data"] == page["data"][1:]
    client.post(f"/v1/jobs/{id}/cancel")


@pytest.mark.parametrize("cursor", ["x", "-1", "99999999999999999999", "１"])
def test_cursors_that_are_none_are_refused(client: httpx.Client, features_request: MakeRequest, cursor: str) -> None:
    id = client.post("/v1/jobs", json=features_request(1)).json()["id"]
    answer = client.get(f"/v1/jobs/{id}/events", params={"after": cursor})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after")
    client.post(f"/v1/jobs/{id}/cancel")
