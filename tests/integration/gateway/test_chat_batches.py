"""Batches of conversations through OpenAI's own client: what the model says at once, it says in a file."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from PIL import Image

from services.dispatcher.plan import PlanJob
from services.dispatcher.steps import batches as step
from services.dispatcher.steps.context import SweepContext
from services.finetune.generate.tasks import make_pool as make_generate_pool
from services.fusion import tasks as fusion
from services.gateway.deps import Services
from services.image import tasks as image
from shared.catalog import load_catalog
from shared.conversations import Message
from shared.db import Sessions
from shared.generation import Generation
from shared.jobs.keys import create_key
from shared.language_models import LanguageModelSpec, load_language_models
from shared.ml.language.generate import Generated, Prompted, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.prompts import PromptTemplate
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.models import add_language_model, tune_language_model
from shared.testing.pools import Handlers, work_off
from shared.testing.tiny import tiny_language_model
from shared.testing.workers import make_context

TINY, URL = "tiny-llama", "/v1/chat/completions"
POOLS = {Queue.IMAGE: image.make_pool, Queue.FUSION: fusion.make_pool, Queue.GENERATE: make_generate_pool}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelSpec:
    return tiny_language_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(spec: LanguageModelSpec) -> LanguageModel:
    """The same model in the test's own process."""
    return load_language_model(spec, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def environment(
    environment: dict[str, str], spec: LanguageModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """With the tiny language model, and a deterministic encoder of pictures."""
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "models.json").write_text(json.dumps([spec.model_dump()]))
    encoder = {"id": "hash-image", "modality": "image", "dimension": 12, "loader": "hashing"}
    (folder / "encoders.json").write_text(json.dumps([encoder]))
    return {
        **environment,
        "TRIVIUM_LANGUAGE_MODELS_FILE": str(folder / "models.json"),
        "TRIVIUM_ENCODERS_FILE": str(folder / "encoders.json"),
        "TRIVIUM_PRECISION": "fp32",
        "TRIVIUM_TORCH_THREADS": "1",
    }


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services; nobody waits for hints here."""
    models = load_language_models(settings.language_models_file)
    return Services(settings, sessions, store, load_catalog(settings.encoders_file), models, lambda _: None)


@pytest.fixture(scope="module")
def ai(url: str, sessions: Sessions) -> Iterator[OpenAI]:
    """OpenAI's client, as its users make it."""
    with sessions.begin() as session:
        _, key = create_key(session, tenant="default", name="test")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def pools(
    settings: Settings, sessions: Sessions, store: ObjectStore, root: Any
) -> Iterator[dict[Queue, Handlers]]:  # fmt: skip
    """What the pools do with shards."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PYTHONPATH", str(root))  # for the decode processes
        made: dict[Queue, Any] = {}
        for queue, make_pool in POOLS.items():
            made[queue] = make_pool(make_context(settings, sessions, store, queue))
            running.callback(made[queue].close)
        planning: Handlers = {Stage.PLAN: PlanJob(make_context(settings, sessions, store, Queue.PLAN))}
        yield {Queue.PLAN: planning, **{queue: pool.handlers for queue, pool in made.items()}}


def answered(
    ai: OpenAI, pools: dict[Queue, Handlers], services: Services, bodies: dict[str, dict[str, Any]], model: str = TINY
) -> tuple[Batch, dict[str, Any], dict[str, Any]]:
    """The batch of these requests, its answers, and the codes of its errors, by `custom_id`."""
    lines = [
        {"custom_id": id, "method": "POST", "url": URL, "body": {"model": model, "temperature": 0, **body}}
        for id, body in bodies.items()
    ]
    file = ai.files.create(file=("a.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = ai.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    work_off(services.sessions, pools)
    context = SweepContext(services.settings, services.sessions, services.store, lambda _: None)
    assert step.finish(context, datetime.now(UTC)) == 1
    batch = ai.batches.retrieve(batch.id)
    files = [
        [] if id is None else [json.loads(one) for one in ai.files.content(id).text.splitlines()]
        for id in (batch.output_file_id, batch.error_file_id)
    ]
    output = {
        one["custom_id"]: ChatCompletion.model_validate(one["response"]["body"], strict=False) for one in files[0]
    }
    return batch, output, {one["custom_id"]: one["response"]["body"]["error"]["code"] for one in files[1]}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def said(model: Any, text: str, **options: Any) -> Generated:
    """What the library itself says, in this process."""
    generation = Generation.model_validate({"temperature": 0, **options})
    return generate(model, [Prompted([Message(role="user", content=text)], (), generation)])[0]


def test_each_request_is_answered_as_it_asks(
    ai: OpenAI, pools: dict[Queue, Handlers], services: Services, base: LanguageModel
) -> None:
    batch, output, errors = answered(
        ai,
        pools,
        services,
        {
            "short": {"messages": user("Hello"), "max_tokens": 3},
            "longer": {"messages": user("Hello"), "max_completion_tokens": 9, "user": "somebody"},
            "seeded": {"messages": user("Who?"), "temperature": 1.5, "seed": 7, "max_tokens": 8},
            "stream": {"messages": user("Hello"), "stream": True},
            "tools": {"messages": user("Hello"), "tools": []},
            "over": {"messages": [*user("Hello"), {"role": "assistant", "content": "Yes?"}]},
            "picture": {"messages": user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])},
            "nothing": {"messages": []},
        },
    )
    expected = {
        "short": said(base, "Hello", max_tokens=3),
        "longer": said(base, "Hello", max_tokens=9),
        "seeded": said(base, "Who?", temperature=1.5, seed=7, max_tokens=8),
    }
    assert {id: one.choices[0].message.content for id, one in output.items()} == {
        id: one.text for id, one in expected.items()
    }
    for id, one in expected.items():
        usage = output[id].usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (one.prompt_tokens, one.completion_tokens)
        assert output[id].choices[0].finish_reason == one.finish_reason
    assert errors == {
        **dict.fromkeys(["stream", "tools", "over", "nothing"], "invalid_request"),
        "picture": "unsuitable_media",
    }
    assert batch.status == "completed"
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(one.completion_tokens for one in expected.values())


def test_pictures_are_read_as_the_model_was_tuned(
    ai: OpenAI, pools: dict[Queue, Handlers], services: Services, base: LanguageModel
) -> None:
    """What cannot be read is an error: nothing is said of a picture that nobody saw."""
    prompt = PromptTemplate(template="{image}Kind?", verbalizers={"animal": ["cat"]})
    model = tune_language_model(base, {Modality.IMAGE: 12}, labels=["animal"], prompt=prompt)
    id = add_language_model(services.sessions, services.store, model, {Modality.IMAGE: "hash-image"})
    model.close()
    pictures = [_png(0), _png(255), b"no picture"]
    urls = ["data:image/png;base64," + base64.b64encode(one).decode() for one in pictures]
    bodies = {
        str(place): {"messages": user([{"type": "image_url", "image_url": {"url": url}}]), "max_tokens": 8}
        for place, url in enumerate(urls)
    }
    _, output, errors = answered(ai, pools, services, bodies, model=id)
    assert set(output) == {"0", "1"}
    assert errors == {"2": "unsupported_format"}
    assert all(one.model == id for one in output.values())


def test_what_cannot_be_talked_to_is_refused(ai: OpenAI) -> None:
    line = {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "hash-image", "messages": user("Hi")}}
    file = ai.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be talked to"):
        ai.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")


def _png(grey: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(target, "PNG")
    return target.getvalue()
