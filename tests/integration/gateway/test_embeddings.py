"""Embeddings through OpenAI's own client, of every modality: the vectors that a features job makes."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import CreateEmbeddingResponse, FileObject, Model
from PIL import Image

from services.dispatcher.worker import make_pool as make_dispatcher
from services.fusion import tasks as fusion
from services.gateway.deps import Services
from services.image import tasks as image
from services.text import tasks as text
from shared.broker import make_broker, send_hints
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.jobs.keys import create_key
from shared.language_models import load_language_models
from shared.queues import Modality, Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for_end
from shared.testing.models import add_trained_model
from shared.testing.workers import make_context, run_pool

POOLS = {
    Queue.PLAN: make_dispatcher,
    Queue.TEXT: text.make_pool,
    Queue.IMAGE: image.make_pool,
    Queue.FUSION: fusion.make_pool,
}


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With deterministic encoders in the catalogue, of which that of texts may be cut."""
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    encoders: list[dict[str, Any]] = [
        {"id": "hash-text", "modality": "text", "dimension": 16, "loader": "hashing", "options": {"matryoshka": True}},
        {"id": "hash-image", "modality": "image", "dimension": 12, "loader": "hashing"},
        {"id": "wide-image", "modality": "image", "dimension": 1_000_000, "loader": "hashing"},
    ]
    file.write_text(json.dumps(encoders))
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_SWEEP_SECONDS": "0.2",
        "TRIVIUM_CACHE_BYTES": "0",
    }


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services, with hints that reach the workers."""
    broker = make_broker(settings)
    catalog = load_catalog(settings.encoders_file)
    models = load_language_models()
    return Services(settings, sessions, store, catalog, models, lambda queues: send_hints(broker, queues))


@pytest.fixture(scope="module")
def ai(
    settings: Settings, sessions: Sessions, store: ObjectStore, root: Path, url: str
) -> Iterator[OpenAI]:  # fmt: skip
    """OpenAI's client; behind the gateway a worker of each pool that is needed."""
    with sessions.begin() as session:
        _, key = create_key(session, tenant="default", name="test")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PYTHONPATH", str(root))  # for the decode processes
        for queue, make_pool in POOLS.items():
            running.enter_context(run_pool(make_context(settings, sessions, store, queue), make_pool))
        yield running.enter_context(OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))


def picture(seed: int) -> str:
    """A PNG of noise, as a `data:` URI."""
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def by_a_job(client: httpx.Client, sessions: Sessions, modality: str, contents: list[str]) -> np.ndarray:
    """What a features job makes of texts or pictures."""
    encoders = {"text": None, "image": None, "audio": None, modality: f"hash-{modality}"}
    items = [{"id": str(place), modality: one} for place, one in enumerate(contents)]
    job = client.post("/v1/jobs", json={"items": items, "encoders": encoders}).json()["id"]
    wait_for_end(sessions, job)
    rows = client.get(f"/v1/jobs/{job}/results").text.splitlines()
    return np.float32([json.loads(row)[f"{modality}_vector"] for row in rows])


def test_vectors_that_would_fill_the_memory_are_not_made(client: httpx.Client) -> None:
    """Of a vision tower each is megabytes: said at the door, where the dimension is known, not once they are there."""
    body = {"model": "wide-image", "input": [{"image": picture(seed)} for seed in range(17)]}
    answer = client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (413, "too_large", "input"), answer.text


def test_texts_are_what_a_job_makes_of_them(ai: OpenAI, client: httpx.Client, sessions: Sessions) -> None:
    texts = ["a red bus", "an old tree", "eine Straßenbahn"]
    expected = by_a_job(client, sessions, "text", texts)
    by_default = ai.embeddings.create(model="hash-text", input=texts, user="somebody")  # base64 on the wire
    as_numbers = ai.embeddings.create(model="hash-text", input=texts, encoding_format="float")
    single = ai.embeddings.create(model="hash-text", input=texts[0])
    for answered in (by_default, as_numbers, single):
        answer = CreateEmbeddingResponse.model_validate(answered.model_dump(), strict=True)
        assert answer.model == "hash-text"
        assert [one.index for one in answer.data] == list(range(len(answer.data)))
        np.testing.assert_array_equal(np.float32([one.embedding for one in answer.data]), expected[: len(answer.data)])
    assert (single.usage.prompt_tokens, by_default.usage.total_tokens) == (1, 3)  # this encoder counts texts


def test_pictures_by_value_and_by_file(ai: OpenAI, client: httpx.Client, sessions: Sessions) -> None:
    pictures = [picture(1), picture(2)]
    data = base64.b64decode(pictures[1].split(",")[1])
    file = ai.files.create(file=("a.png", data), purpose="vision")
    given: Any = [{"image": pictures[0]}, {"image": file.id}]
    answer = ai.embeddings.create(model="hash-image", input=given)
    expected = by_a_job(client, sessions, "image", pictures)
    np.testing.assert_array_equal(np.float32([one.embedding for one in answer.data]), expected)
    assert answer.usage.total_tokens == 0


def test_vectors_are_cut_only_where_their_beginnings_mean_something(ai: OpenAI) -> None:
    [whole] = ai.embeddings.create(model="hash-text", input="a", dimensions=16).data
    [short] = ai.embeddings.create(model="hash-text", input="a", dimensions=4).data
    assert np.linalg.norm(short.embedding) == pytest.approx(1)
    np.testing.assert_allclose(short.embedding, whole.embedding[:4] / np.linalg.norm(whole.embedding[:4]), rtol=1e-6)
    given: Any = {"image": picture(1)}
    with pytest.raises(openai.UnprocessableEntityError, match="means nothing by itself"):
        ai.embeddings.create(model="hash-image", input=given, dimensions=4)
    with pytest.raises(openai.UnprocessableEntityError, match="the most it has"):
        ai.embeddings.create(model="hash-text", input="a", dimensions=17)


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"input": [1, 2]}, 422, "invalid_request", "input"),
        ({"input": [[1, 2]]}, 422, "invalid_request", "input"),
        ({"input": []}, 422, "invalid_request", "input"),
        ({"input": {"text": "a", "image": "b"}}, 422, "invalid_request", "input"),
        ({"input": ["fine", " "]}, 422, "empty_text", "input.1"),
        ({"input": [{"image": "file-x"}]}, 422, "unsuitable_input", "input.0"),
        ({"model": "hash-image", "input": [{"image": "nowhere"}]}, 422, "missing_media", "input.0"),
        ({"model": "hash-image", "input": [{"image": "data:,x"}]}, 422, "unsupported_format", "input.0"),
        ({"input": "x" * 2**20 + "y"}, 413, "too_large", "input"),
        ({"model": "nowhere"}, 404, "model_not_found", "model"),
        ({"model": "word2vec"}, 422, "encoder_not_trained", "model"),
        ({"encoding_format": "hex"}, 422, "invalid_request", "encoding_format"),
        ({"instruction": "query: "}, 422, "invalid_request", "instruction"),
    ],
)
def test_what_cannot_be_embedded_is_said(
    ai: OpenAI, client: httpx.Client, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = client.post("/v1/embeddings", json={"model": "hash-text", "input": "a text", **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert error["param"].startswith(param)


def test_a_model_that_makes_no_vectors_is_refused(ai: OpenAI, sessions: Sessions, store: ObjectStore) -> None:
    model = add_trained_model(sessions, store, {Modality.TEXT: ("hash-text", 16)})
    with pytest.raises(openai.UnprocessableEntityError, match="is a classifier"):
        ai.embeddings.create(model=model, input="a")


def test_files_are_what_openai_has(ai: OpenAI) -> None:
    made = [ai.files.create(file=(f"{name}.jsonl", b'{"a": 1}\n'), purpose="fine-tune") for name in "abc"]
    for file in made:
        FileObject.model_validate(file.model_dump(), strict=True)
    assert ai.files.wait_for_processing(made[0].id).status == "processed"
    assert ai.files.content(made[0].id).read() == b'{"a": 1}\n'
    listed = [file.id for file in ai.files.list(purpose="fine-tune", limit=2)]  # goes on to the next pages
    assert listed == [file.id for file in reversed(made)]
    assert [file.id for file in ai.files.list(purpose="fine-tune", limit=2, order="asc")] == listed[::-1]
    with pytest.raises(openai.UnprocessableEntityError, match="expires_after"):
        ai.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    deleted = ai.files.delete(made[0].id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made[0].id, "file", True)
    with pytest.raises(openai.NotFoundError):
        ai.files.retrieve(made[0].id)


def test_models_are_what_openai_has(ai: OpenAI, sessions: Sessions, store: ObjectStore) -> None:
    trained = add_trained_model(sessions, store, {Modality.TEXT: ("hash-text", 16)})
    models = list(ai.models.list())
    assert {"hash-text", "all-minilm-l6-v2", trained} <= {model.id for model in models}
    for model in models:
        Model.model_validate(model.model_dump(), strict=True)
    assert ai.models.retrieve("hash-text").owned_by == "trivium"
    assert ai.models.delete(trained).deleted
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve(trained)
