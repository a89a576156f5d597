"""What the gateway says about itself, and the shape of its errors: no server is needed for these."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openapi_spec_validator import validate
from pydantic import BaseModel, SecretStr, TypeAdapter

from services.gateway import examples, openai_examples
from services.gateway.__main__ import check_reach
from services.gateway.app import create_app
from services.gateway.deps import open_services
from shared import schemas
from shared.batches import Batch, BatchRequest
from shared.embeddings import EmbeddingList, EmbeddingRequest
from shared.fine_tuning_jobs import FineTuningCheckpoint, FineTuningEvent, FineTuningJob, FineTuningRequest
from shared.predictions import PredictionList, PredictionRequest
from shared.requests import JobRequest
from shared.schemas import ErrorResponse, Page
from shared.search import SearchRequest, SearchResults
from shared.settings import Settings, SettingsError


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A gateway whose servers are all away."""
    settings = Settings(
        mode="production",
        database_url=SecretStr("postgresql+psycopg://u:long-secret@127.0.0.1:1/x"),
        redis_url=SecretStr("redis://:long-secret@127.0.0.1:1/0"),
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key=SecretStr("long-access"),
        s3_secret_key=SecretStr("long-secret"),
    )
    settings.limits.json_bytes = 1000
    with open_services(settings) as services, TestClient(create_app(services)) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    """The OpenAPI document."""
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_the_openapi_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_route_is_described_with_examples(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len(found) >= 20
    for name, operation in found.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        body = operation.get("requestBody", {}).get("content", {})
        for media, content in body.items():
            assert {"example", "examples"} & content.keys() or "examples" in content["schema"], (name, media)
        for status, answer in operation["responses"].items():
            for media, content in answer.get("content", {}).items():
                binary = content.get("schema", {}).get("format") == "binary"
                assert binary or "example" in content, (name, status, media)


def test_every_route_of_the_api_documents_its_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        if "/v1/" in name:
            assert {"401", "422", "429", "500", "503"} <= operation["responses"].keys(), name
            assert ("requestBody" in operation) <= ("413" in operation["responses"]), name
            assert operation["security"], name
        for status, answer in operation["responses"].items():
            assert (status in {"429", "503"}) == ("Retry-After" in answer.get("headers", {})) or "/v1/" not in name
            if int(status) >= 400 and name != "GET /readyz":
                content = answer["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}, (name, status)
                ErrorResponse.model_validate(content["example"])


@pytest.mark.parametrize(
    ("example", "model"),
    [
        (examples.FILE, schemas.File),
        (examples.JOB, schemas.Job),
        (examples.EVENT, schemas.JobEvent),
        (examples.ITEM_ERROR, schemas.ItemErrorEntry),
        (examples.PART, schemas.Part),
        (examples.MODEL, schemas.ModelEntry),
        (examples.WORKER, schemas.WorkerEntry),
        (examples.KEY, schemas.Key),
        (examples.NEW_KEY, schemas.NewKey),
        (examples.PREDICTIONS, PredictionList),
        (openai_examples.EMBEDDINGS, EmbeddingList),
        (openai_examples.BATCH, Batch),
        (openai_examples.FINE_TUNING_JOB, FineTuningJob),
        (openai_examples.FINE_TUNING_EVENT, FineTuningEvent),
        (openai_examples.FINE_TUNING_CHECKPOINT, FineTuningCheckpoint),
        (examples.SEARCH_RESULTS, SearchResults),
        (examples.deleted("job", "job-1"), schemas.Deleted),
        (examples.page_of(examples.JOB), Page[schemas.Job]),
    ],
)
def test_examples_are_what_is_really_answered(example: dict[str, Any], model: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    assert adapter.dump_python(adapter.validate_python(example), mode="json") == example


@pytest.mark.parametrize("name", examples.JOB_REQUESTS)
def test_example_requests_are_accepted(name: str) -> None:
    adapter: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
    adapter.validate_python(examples.JOB_REQUESTS[name]["value"])


@pytest.mark.parametrize(
    ("given", "model"),
    [
        (examples.PREDICTION_REQUESTS, PredictionRequest),
        (openai_examples.EMBEDDING_REQUESTS, EmbeddingRequest),
        (openai_examples.BATCH_REQUESTS, BatchRequest),
        (openai_examples.FINE_TUNING_REQUESTS, FineTuningRequest),
    ],
)
def test_examples_of_other_requests_are_accepted(given: dict[str, Any], model: type[BaseModel]) -> None:
    for example in given.values():
        model.model_validate(example["value"])


@pytest.mark.parametrize("name", examples.SEARCH_REQUESTS)
def test_example_searches_are_accepted(name: str) -> None:
    SearchRequest.model_validate(examples.SEARCH_REQUESTS[name]["value"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_route"),
        ("GET", "/v1/jobs/", 404, "unknown_route"),
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs", 401, "missing_api_key"),
        ("GET", "/v1/jobs?limit=x", 401, "missing_api_key"),
    ],
)
def test_errors_have_one_shape(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert ErrorResponse.model_validate(answer.json()).error.code == code
    assert answer.headers["x-request-id"].startswith("req-")


def test_a_wrong_method_is_told_the_right_ones(client: TestClient) -> None:
    assert client.put("/v1/jobs").headers["allow"] == "GET, POST"
    assert client.put("/v1/files/file-1").headers["allow"] == "GET, DELETE"


def test_request_ids_of_callers_are_kept_if_sane(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "trace-1.2"}).headers["x-request-id"] == "trace-1.2"
    for odd in ("a b", "x" * 200, "a\tb"):
        assert client.get("/healthz", headers={"X-Request-ID": odd}).headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(client: TestClient, chunked: bool) -> None:
    body = b'{"items": "' + b"x" * 2000 + b'"}'
    content = iter([body[:500], body[500:]]) if chunked else body
    answer = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("body", [b"{", b"[]x", b'{"a": \xff}', b"[" * 900])
def test_what_is_not_json_is_said(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert ErrorResponse.model_validate(answer.json()).error.code == "invalid_json"


def test_health_needs_no_server(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")


def test_docs_are_served(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()


@pytest.mark.parametrize(("mode", "host", "allowed"), [
    ("development", "127.0.0.1", True), ("development", "::1", True), ("development", "localhost", True),
    ("development", "0.0.0.0", False), ("development", "10.0.0.1", False), ("production", "0.0.0.0", True),
])  # fmt: skip
def test_development_mode_stays_on_this_machine(mode: str, host: str, allowed: bool) -> None:
    settings = Settings.model_construct(mode=mode, gateway_host=host)
    with nullcontext() if allowed else pytest.raises(SettingsError, match="development mode"):
        check_reach(settings)
