"""Chat in OpenAI's shape, by its own client, and predict jobs of language models: a real worker answers."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from services.audio import tasks as audio
from services.client.client import Client
from services.finetune.generate.tasks import make_pool as make_generate_pool
from services.fusion import tasks as fusion
from services.gateway.deps import Services
from services.image import tasks as image
from shared.conversations import Message
from shared.db import Sessions
from shared.generation import Generation
from shared.jobs.keys import create_key
from shared.language_models import LanguageModelSpec
from shared.ml.language.generate import Generated, Prompted, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.tuned import TunedLanguageModel
from shared.prompts import PromptTemplate
from shared.queues import Modality, Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.testing.models import add_language_model, tune_language_model
from shared.testing.oracle import wrong_counters
from shared.testing.tiny import tiny_language_model
from shared.testing.workers import make_context, run_pool
from tests.integration.gateway.conftest import hinting_services, running_workers

TINY = "tiny-llama"
ENCODERS = {Modality.IMAGE: ("hash-image", 12), Modality.AUDIO: ("hash-audio", 8)}
POOLS = {Queue.IMAGE: image.make_pool, Queue.AUDIO: audio.make_pool, Queue.FUSION: fusion.make_pool}


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
    """With the tiny language model, and deterministic encoders."""
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "models.json").write_text(json.dumps([spec.model_dump()]))
    encoders = [{"id": id, "modality": m, "dimension": d, "loader": "hashing"} for m, (id, d) in ENCODERS.items()]
    encoders.append({"id": "wide-image", "modality": "image", "dimension": 1_000_000, "loader": "hashing"})
    (folder / "encoders.json").write_text(json.dumps(encoders))
    return {
        **environment,
        "TRIVIUM_LANGUAGE_MODELS_FILE": str(folder / "models.json"),
        "TRIVIUM_ENCODERS_FILE": str(folder / "encoders.json"),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_PRECISION": "fp32",
        "TRIVIUM_TORCH_THREADS": "1",
    }


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services, with hints that reach the workers."""
    return hinting_services(settings, sessions, store)


@pytest.fixture(scope="module")
def workers(settings: Settings, sessions: Sessions, store: ObjectStore, root: Path) -> Iterator[None]:
    """A worker of each other pool that is needed."""
    with running_workers(settings, sessions, store, root, POOLS):
        yield


@pytest.fixture(scope="module")
def key(sessions: Sessions) -> str:
    with sessions.begin() as session:
        return create_key(session, tenant="default", name="chat", scope="user")[1]


@pytest.fixture(scope="module")
def ai(url: str, key: str, settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[OpenAI]:
    """OpenAI's client, once a worker has the model."""
    with (
        run_pool(make_context(settings, sessions, store, Queue.GENERATE), make_generate_pool),
        OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=5, timeout=90) as client,
    ):
        ask(client, "Hello", max_tokens=1)
        yield client


@pytest.fixture(scope="module")
def tuned(base: LanguageModel) -> Iterator[TunedLanguageModel]:
    """A model that takes pictures and sounds, and chooses among labels."""
    prompt = PromptTemplate(template="{image}{audio}Kind of {text}?", verbalizers={"animal": ["cat", "dog"]})
    dimensions = {m: d for m, (_, d) in ENCODERS.items()}
    model = tune_language_model(base, dimensions, labels=["animal", "plant"], prompt=prompt)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tuned_id(tuned: TunedLanguageModel, sessions: Sessions, store: ObjectStore) -> str:
    return add_language_model(sessions, store, tuned, {m: id for m, (id, _) in ENCODERS.items()})


def ask(ai: OpenAI, content: Any, *, model: str = TINY, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return ai.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **options)


def answers(model: LanguageModel | TunedLanguageModel, texts: Sequence[str], **options: Any) -> list[Generated]:
    """What the library itself says, in this process."""
    generation = Generation.model_validate({"temperature": 0, "max_tokens": 24, **options})
    return generate(model, [Prompted([Message(role="user", content=t)], (), generation) for t in texts])


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def picture(seed: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


def sound(seed: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(seed).uniform(-0.5, 0.5, 1600), 16_000, format="WAV")
    return target.getvalue()


def of_media(seed: int) -> list[dict[str, Any]]:
    sounds = base64.b64encode(sound(seed)).decode()
    return [
        {"type": "image_url", "image_url": {"url": data_uri("image/png", picture(seed))}},
        {"type": "input_audio", "input_audio": {"data": sounds, "format": "wav"}},
        {"type": "text", "text": "What is it?"},
    ]


def test_openais_client_gets_the_librarys_answer_whole_or_as_a_stream(ai: OpenAI, base: LanguageModel) -> None:
    [expected] = answers(base, ["Why?"])
    whole = ask(ai, "Why?")
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish_reason
    assert (whole.object, whole.model, whole.id[:9]) == ("chat.completion", TINY, "chatcmpl-")
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    assert whole.usage.completion_tokens == expected.completion_tokens
    assert whole.usage.total_tokens == expected.prompt_tokens + expected.completion_tokens
    chunks = list(ask(ai, "Why?", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == expected.text
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [expected.finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


async def test_many_at_once_get_their_own_answers(url: str, key: str, ai: OpenAI, base: LanguageModel) -> None:
    texts = [f"{'So ' * (n % 5)}number {n}?" for n in range(24)]

    async def one(client: AsyncOpenAI, text: str, stream: bool) -> str:
        asked = client.chat.completions.create(
            model=TINY, messages=[{"role": "developer", "content": "Be."}, {"role": "user", "content": text}],
            temperature=0, max_completion_tokens=24, stream=stream,
        )  # fmt: skip
        if not stream:
            return (await asked).choices[0].message.content or ""
        return "".join([chunk.choices[0].delta.content or "" async for chunk in await asked])

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, timeout=90) as client:
        said = await asyncio.gather(*(one(client, text, n % 2 == 0) for n, text in enumerate(texts)))
    generation = Generation(temperature=0, max_tokens=24)
    conversations = [[Message(role="system", content="Be."), Message(role="user", content=t)] for t in texts]
    expected = generate(base, [Prompted(c, (), generation) for c in conversations])
    assert said == [one.text for one in expected]
    assert len(set(said)) > 3


def test_answers_are_drawn_as_asked(ai: OpenAI, base: LanguageModel) -> None:
    drawn = [ask(ai, "Why?", temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    [whole] = answers(base, ["Why?"])
    stop = whole.text[4:6]
    cut = ask(ai, "Why?", stop=stop)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (
        whole.text[: whole.text.find(stop)],
        "stop",
    )


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"model": "model-01k9w0e1a4b7c2d5f8g3h6j9km"}, 404, "model_not_found", "model"),
        ({"model": "hash-image"}, 422, "unsuitable_model", "model"),
        ({"messages": [{"role": "user", "content": "long " * 110}]}, 400, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": of_media(0)}]}, 422, "unsuitable_media", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 422, "invalid_request", "messages.0.role"),
        ({"messages": []}, 422, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 422, "invalid_unicode", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, 413, "too_large", "messages"),
        ({"n": 2}, 422, "invalid_request", "n"),
        ({"tools": []}, 422, "invalid_request", "tools"),
        ({"stop": ["a"] * 17}, 422, "invalid_request", None),
    ],
)
def test_what_cannot_be_answered_is_said_at_once(
    ai: OpenAI, client: httpx.Client, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    body = {"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "stream": True, **change}
    content = json.dumps(body).encode()
    answer = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    if param is not None:
        assert answer.json()["error"]["param"] == param


def test_pictures_and_sounds_are_read_by_the_models_own_encoders(
    ai: OpenAI, client: httpx.Client, workers: None, tuned_id: str
) -> None:
    first, again, other = (ask(ai, of_media(seed), model=tuned_id).choices[0].message.content for seed in (1, 1, 2))
    assert first == again != other
    file = client.post("/v1/files", files={"file": ("a.png", picture(1))}).json()["id"]
    by_file = of_media(1)
    by_file[0]["image_url"]["url"] = file
    assert ask(ai, by_file, model=tuned_id).choices[0].message.content == first
    broken = of_media(1)
    broken[0]["image_url"]["url"] = data_uri("image/png", picture(1)[:40])
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(ai, broken, model=tuned_id)
    assert caught.value.code == "corrupt_media"


def test_pictures_that_would_fill_the_memory_are_not_encoded(
    client: httpx.Client, tuned: TunedLanguageModel, sessions: Sessions, store: ObjectStore
) -> None:
    """Neither encoder nor model is asked: the dimension says what they would take."""
    model = add_language_model(sessions, store, tuned, {Modality.IMAGE: "wide-image"})
    content = [of_media(seed)[0] for seed in range(17)]
    answer = client.post(
        "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": content}]}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (413, "too_large", "messages"), answer.text


def test_a_long_answer_holds_up_nobody(ai: OpenAI, base: LanguageModel) -> None:
    """A short answer that was asked for later is there before the long one ends; who leaves a stream stops it."""
    texts = [f"Tell me {n}" for n in range(32)]
    longest = max(zip(answers(base, texts, max_tokens=400), texts, strict=True), key=lambda a: a[0].completion_tokens)
    assert longest[0].completion_tokens > 60, "the tiny model has become taciturn"
    stream = ask(ai, longest[1], max_tokens=400, stream=True)
    next(stream)
    short = threading.Thread(target=lambda: done.append(ask(ai, "Hi", max_tokens=2)))
    done: list[Any] = []
    short.start()
    seen = 0
    for _ in stream:
        seen += 1
        if done:
            break
    short.join()
    assert seen < longest[0].completion_tokens
    stream.close()


def job_rows(client: httpx.Client, **request: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A predict job once it has ended, and its rows by item."""
    created = client.post("/v1/jobs", json={"type": "predict", **request})
    assert created.status_code == 202, created.text

    def ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(f"/v1/jobs/{created.json()['id']}").json()
        return shown if shown["status"] in {"succeeded", "failed"} else None

    job = wait_for(ended, what="the end of the predict job")
    assert job["status"] == "succeeded", job["error"]
    lines = client.get(f"/v1/jobs/{job['id']}/results").text.splitlines()
    return job, {row["id"]: row for row in map(json.loads, lines)}


def test_a_predict_job_of_a_base_model_answers_prompts_and_messages(
    ai: OpenAI, client: httpx.Client, workers: None, base: LanguageModel, sessions: Sessions
) -> None:
    items: list[dict[str, Any]] = [{"id": f"item-{n}", "text": f"word {n}", "label": "x"} for n in range(5)]
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "To be learned."}]
    items.append({"id": "talk", "messages": turns})
    request = {"model": TINY, "items": items, "prompt": {"template": "Say: {text}!"}, "generation": {"max_tokens": 24}}
    job, rows = job_rows(client, **request, shard_size=4)
    expected = answers(base, [*(f"Say: word {n}!" for n in range(5)), "Why?"])
    assert [row["prediction"] for row in rows.values()] == [one.text for one in expected]
    assert [row["finish_reason"] for row in rows.values()] == [one.finish_reason for one in expected]
    assert [row["completion_tokens"] for row in rows.values()] == [one.completion_tokens for one in expected]
    assert rows["item-0"]["label"] == ["x"]
    assert job["stages"]["generate"]["items_done"] == 6
    assert wrong_counters(sessions) == []


def test_a_predict_job_of_a_tuned_model_says_what_its_words_stand_for(
    ai: OpenAI, client: httpx.Client, workers: None, tuned_id: str, sessions: Sessions
) -> None:
    """The same as a chat with the prompt that the model was tuned with; on a feature set, the same again."""
    items = [{"id": f"item-{n}", "text": f"thing {n}", "image": data_uri("image/png", picture(n))} for n in range(3)]
    job, rows = job_rows(client, model=tuned_id, items=items)
    for n, row in enumerate(rows.values()):
        content = [
            {"type": "image_url", "image_url": {"url": items[n]["image"]}},
            {"type": "text", "text": f"Kind of thing {n}?"},
        ]
        assert row["answer"] == ask(ai, content, model=tuned_id, max_tokens=256).choices[0].message.content
        assert row["prediction"] in {None, "animal", "plant"}
    _, again = job_rows(client, model=tuned_id, features=job["id"])
    assert again == rows
    assert wrong_counters(sessions) == []


@pytest.mark.parametrize("name", ["generation", "prompt"])
def test_what_is_for_language_models_is_refused_of_others(
    client: httpx.Client, classifier: Callable[[], str], name: str
) -> None:
    request = {"type": "predict", "model": classifier(), "items": [{"id": "a", "text": "x"}], name: {}}
    answer = client.post("/v1/jobs", json=request)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)


@pytest.fixture(scope="module")
def classifier(sessions: Sessions, store: ObjectStore) -> Callable[[], str]:
    from shared.testing.models import add_trained_model

    return lambda: add_trained_model(sessions, store, ENCODERS)


def test_triviums_own_client_talks_too(ai: OpenAI, url: str, base: LanguageModel) -> None:
    [expected] = answers(base, ["Why?"])
    asked = [{"role": "user", "content": "Why?"}]
    with Client(url) as client:
        whole = client.chat.create(model=TINY, messages=asked, temperature=0, max_completion_tokens=24)
        chunks = list(client.chat.stream(model=TINY, messages=asked, temperature=0, max_completion_tokens=24))
    assert whole.choices[0].message.content == expected.text
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == expected.text
    assert chunks[-1].usage == whole.usage
