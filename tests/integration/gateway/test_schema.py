"""What the OpenAPI document says is what happens, whatever is sent: requests made up by schemathesis, good and bad."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from pydantic import SecretStr
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway import embedding, middleware
from services.gateway.app import create_app
from services.gateway.buckets import Rate
from services.gateway.deps import Services, open_services
from shared.db import Sessions
from shared.jobs.keys import create_key
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.queues import Queue
from shared.settings import Settings
from tests.integration.gateway.conftest import Pools, serve


def openapi_document() -> dict[str, Any]:
    """The document of a gateway that is connected to nothing."""
    nowhere = Settings(
        mode="development",
        database_url=SecretStr("postgresql+psycopg://127.0.0.1:1/x"),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key=SecretStr(""),
        s3_secret_key=SecretStr(""),
    )
    with open_services(nowhere) as services:
        return create_app(services).openapi()


#: That fields go together (items or input; weights with the method that uses them), and what stands between braces in a
#: prompt, cannot be said in a JSON schema;
#: an empty list, sent as a form, is nothing at all; NUL is in no id and no filter, and the corpus sends it everywhere.
#: a filter that is written otherwise is none, and of a parameter that comes several times the last counts.
#: Of what is waited for, 504 is the right answer, since there are no workers here, and perhaps no time.
AT_THE_DOOR = {"positive_data_acceptance": {"enabled": False}}
CONFIG = {
    "generation": {"with-security-parameters": False, "allow-x00": False},
    "operations": [
        *({"include-name": f"POST /v1/{path}", "checks": AT_THE_DOOR} for path in ("jobs", "prompts", "batches")),
        {"include-name": "POST /v1/prompts/{id}/preview", "checks": AT_THE_DOOR},
        *(
            {"include-name": f"POST /v1/{path}", "checks": {**AT_THE_DOOR, "not_a_server_error": {"enabled": False}}}
            for path in ("predictions", "search", "embeddings", "chat/completions")
        ),
        *(
            {"include-name": name, "checks": {"negative_data_rejection": {"enabled": False}}}
            for name in ("POST /v1/files", "GET /v1/jobs", "GET /v1/fine_tuning/jobs")
        ),
    ],
}
DOCUMENT = schemathesis.openapi.from_dict(openapi_document(), config=schemathesis.Config.from_dict(CONFIG))
OF_THINGS = schemathesis.openapi.from_dict(openapi_document()).include(path_regex="id").exclude(path_regex="name")

some = hypothesis.settings(
    max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", autouse=True)
def _nobody_answers() -> Iterator[None]:
    """There are no workers here: who waits for one, waits in vain, and is told so soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "WAIT_SECONDS", 0.2)
        yield


@pytest.fixture(scope="module")
def production(services: Services) -> Iterator[str]:
    """The same gateway in production mode."""
    strict = services.settings.model_copy(update={"mode": "production"})
    with pytest.MonkeyPatch.context() as patch, serve(create_app(replace(services, settings=strict))) as url:
        patch.setattr(middleware, "FAILURES", Rate(per_second=1e6, size=10**6))  # it tries hundreds of wrong keys
        yield url


@pytest.fixture(scope="module")
def key(sessions: Sessions) -> str:
    """An administrator's API key."""
    with sessions.begin() as session:
        return create_key(session, tenant="default", name="schemathesis", scope="admin")[1]


def waits_in_vain_at_worst(_context: CheckContext, response: Response, _case: Case) -> None:
    """Of 5xx there are only 503 and 504, and these where the document has them."""
    assert response.status_code < 500 or response.status_code in {503, 504}, response.text


@DOCUMENT.parametrize()
@some
def test_with_keys(case: Case, production: str, key: str) -> None:
    """No 5xx, no status, content type or body that is not documented; bad input and missing keys are refused."""
    case.call_and_validate(
        base_url=production, headers={"Authorization": f"Bearer {key}"}, additional_checks=[waits_in_vain_at_worst]
    )


@DOCUMENT.parametrize()
@some
def test_without_keys(case: Case, url: str) -> None:
    """The same in development mode, where none is needed."""
    case.call_and_validate(base_url=url, excluded_checks=[ignored_auth], additional_checks=[waits_in_vain_at_worst])


@pytest.fixture
def things(
    services: Services, sessions: Sessions, url: str, pools: Pools, features_request: Callable[..., dict[str, Any]]
) -> dict[str, str]:
    """A succeeded job, a file, a model, a prompt and a key, by the part of the path that names their kind."""
    with httpx.Client(base_url=url) as client:
        job = client.post("/v1/jobs", json=features_request(3)).json()["id"]
        file = client.post("/v1/files", files={"file": ("a.txt", b"text")}).json()["id"]
        drawn = {"name": "thing", "prompt": {"image_text": {"text": "words"}}}
        prompt = client.post("/v1/prompts", json=drawn).json()["id"]
        pools.run(Queue.TEXT, Queue.FUSION)
        of_file = {"input_file_id": file, "endpoint": "/v1/embeddings"}
        batch = client.post("/v1/batches", json=of_file).json()["id"]
        tuning = {"training_file": file, "model": DEFAULT_LANGUAGE_MODEL}
        tuned = client.post("/v1/fine_tuning/jobs", json=tuning).json()["id"]
        prompt = client.post("/v1/prompts", json={"name": "kinds", "prompt": {"template": "What is {text}?"}}).json()[
            "id"
        ]
    with sessions.begin() as session:
        row, _ = create_key(session, tenant="default", name="thing")
        ids = {"jobs": job, "files": file, "models": "all-minilm-l6-v2", "keys": row.id}
        return {**ids, "prompts": prompt, "batches": batch, "fine_tuning": tuned}


@OF_THINGS.parametrize()
@some
def test_with_what_exists(case: Case, url: str, things: dict[str, str]) -> None:
    """Ids that were made up are nobody's; these are of things that are there, until a request deletes them."""
    case.path_parameters = {"id": things[case.path.split("/")[2]]}
    case.call_and_validate(
        base_url=url,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
