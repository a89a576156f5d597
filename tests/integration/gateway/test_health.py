"""Health, metrics, models and workers; and what callers see when a server that the gateway needs is away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from deploy.local.ports import free_port
from services.gateway.app import create_app
from services.gateway.deps import Services, open_services
from shared.db import Sessions
from shared.jobs.models import Model, Worker
from shared.queues import Queue
from shared.schemas import ErrorResponse
from tests.integration.gateway.conftest import Pools


@contextmanager
def gateway_with(services: Services, **settings: Any) -> Iterator[TestClient]:
    """A gateway of its own with other settings."""
    with (
        open_services(services.settings.model_copy(update=settings)) as other,
        TestClient(create_app(replace(other, hint=services.hint)), raise_server_exceptions=False) as client,
    ):
        yield client


def test_ready_when_all_answer(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "postgres": True, "s3": True, "redis": True}


def test_redis_is_not_required(services: Services) -> None:
    with gateway_with(services, redis_url=SecretStr(f"redis://:x@127.0.0.1:{free_port()}/0")) as client:
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["redis"]) == (200, False)


def test_without_postgres_nothing_works_and_all_say_so(services: Services) -> None:
    with gateway_with(
        services, database_url=SecretStr(f"postgresql+psycopg://u:p@127.0.0.1:{free_port()}/x")
    ) as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["postgres"], ready.json()["s3"]) == (503, False, True)
        assert client.get("/healthz").status_code == 200
        jobs = client.get("/v1/jobs")
        assert (jobs.status_code, jobs.json()["error"]["code"]) == (503, "unavailable")
        assert int(jobs.headers["retry-after"]) > 0
        assert "127.0.0.1" not in jobs.text
        assert "trivium_http_requests_total" in client.get("/metrics").text


def test_without_s3_jobs_are_not_accepted(services: Services) -> None:
    with gateway_with(services, s3_endpoint=f"http://127.0.0.1:{free_port()}") as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["postgres"], ready.json()["s3"]) == (503, True, False)
        answer = client.post("/v1/jobs", json={"items": [{"id": "a", "text": "x"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert "127.0.0.1" not in answer.text
        assert client.get("/v1/jobs").json()["data"] == []


def test_a_fault_of_ours_tells_nothing_but_its_id(services: Services) -> None:
    def broken() -> Any:
        raise RuntimeError("secret internals")

    with TestClient(create_app(replace(services, sessions=broken)), raise_server_exceptions=False) as client:  # type: ignore[arg-type]
        answer = client.get("/v1/jobs", headers={"X-Request-ID": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-1")
    error = ErrorResponse.model_validate(answer.json()).error
    assert (error.code, "secret" in error.message) == ("internal_error", False)


@pytest.mark.usefixtures("no_other_jobs")
def test_metrics_count_requests_queues_and_jobs(
    services: Services, features_request: Callable[..., dict[str, Any]], pools: Pools
) -> None:
    with gateway_with(services) as client:
        client.post("/v1/jobs", json=features_request(8, shard_size=4))
        client.get("/v1/jobs/job-none")
        client.get("/wp-login.php")
        pools.claim(Queue.TEXT)
        families = text_string_to_metric_families(client.get("/metrics").text)
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return found[name, *sorted(labels.items())]

    assert value("trivium_http_requests_total", method="POST", route="/v1/jobs", status="202") == 1
    assert value("trivium_http_requests_total", method="GET", route="/v1/jobs/{id}", status="404") == 1
    assert value("trivium_http_requests_total", method="GET", route="unmatched", status="404") == 1
    assert value("trivium_queue_shards", queue="text", state="leased") == 2
    assert value("trivium_queue_shards", queue="fusion", state="blocked") == 2
    assert value("trivium_jobs", status="running") == 1
    assert value("trivium_queue_oldest_seconds", queue="image") == 0
    assert value("trivium_queue_stranded_shards", queue="text") == 0


def test_models_are_the_catalogue_and_the_tenants_own(
    client: httpx.Client, stranger: httpx.Client, sessions: Sessions, services: Services
) -> None:
    with sessions.begin() as session:
        session.add(
            Model(
                id="model-1", tenant="stranger", kind="fitted_encoder", modality="text", dimension=128,
                fingerprint="f" * 64, key="models/x", sha256="0" * 64, spec={"loader": "word2vec"},
            )
        )  # fmt: skip
    shipped = [*services.catalog, *services.language_models]
    mine = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in mine] == shipped
    theirs = stranger.get("/v1/models").json()["data"]
    assert [model["id"] for model in theirs] == [*shipped, "model-1"]
    assert (theirs[-1]["kind"], theirs[-1]["owned_by"]) == ("fitted_encoder", "stranger")
    assert stranger.get("/v1/models/model-1").json() == theirs[-1]
    assert client.get("/v1/models/model-1").status_code == 404
    assert client.get("/v1/models/mobilenet_v2").json()["dimension"] == 1280
    page = client.get("/v1/models", params={"limit": 2}).json()
    assert page["has_more"]
    rest = client.get("/v1/models", params={"after": page["last_id"]}).json()["data"]
    assert page["data"] + rest == mine


def test_a_model_id_may_hold_slashes(client: httpx.Client) -> None:
    answer = client.get("/v1/models/google/no-such-model")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.usefixtures("no_other_jobs")
def test_workers_show_only_the_callers_shards(
    client: httpx.Client,
    stranger: httpx.Client,
    features_request: Callable[..., dict[str, Any]],
    pools: Pools,
    sessions: Sessions,
) -> None:
    job = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    pools.claim(Queue.TEXT)
    with sessions.begin() as session:
        row = {"pool": "text", "host": "h", "pid": 7, "version": "1", "loaded_models": ["m"]}
        long_ago = datetime.now(UTC) - timedelta(minutes=5)
        session.add(Worker(id="worker-test", state="busy", **row))
        session.add(Worker(id="worker-gone", last_seen_at=long_ago, **row))
    [mine] = client.get("/v1/workers").json()["data"]
    assert (mine["id"], mine["pool"], mine["state"], mine["loaded_models"]) == ("worker-test", "text", "busy", ["m"])
    assert (mine["version"], mine["protocol"]) == ("1", 1)
    assert [(shard["job_id"], shard["stage"], shard["shard"]) for shard in mine["current_shards"]] == [(job, "text", 0)]
    [theirs] = stranger.get("/v1/workers").json()["data"]
    assert theirs["current_shards"] == []
