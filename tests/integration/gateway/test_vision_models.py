"""A vision-language model through gateway and workers: tuned on pictures, and asked about them beside its base."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from services.finetune.generate.tasks import make_pool as make_generate_pool
from services.finetune.tasks import make_pool as make_training_pool
from services.fusion.tasks import make_pool as make_fusion_pool
from services.gateway.deps import Services
from services.image.tasks import make_pool as make_image_pool
from shared.catalog import EncoderSpec
from shared.conversations import MediaPart, Message, TextPart
from shared.db import Sessions
from shared.generation import Generation
from shared.jobs.models import Model
from shared.language_models import LanguageModelSpec
from shared.ml.encoders.loading import load_encoder
from shared.ml.language.generate import Prompted, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import FILES, TunedLanguageModel
from shared.queues import Modality, Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.testing.oracle import wrong_counters
from shared.testing.tiny_vision import tiny_vision_model
from tests.integration.gateway.conftest import hinting_services, running_workers

POOLS = {
    Queue.IMAGE: make_image_pool, Queue.FUSION: make_fusion_pool,
    Queue.FINE_TUNE: make_training_pool, Queue.GENERATE: make_generate_pool,
}  # fmt: skip
TINY, EYES = "tiny-idefics3", "tiny-idefics3-image"
ENCODERS = {"text": None, "audio": None}
PROMPT = {"template": "{image}Is it bright?"}
TRAINING = {"epochs": 2, "batch_size": 4, "max_length": 96, "max_new_tokens": 4, "lora_rank": 2}

Specs = tuple[LanguageModelSpec, EncoderSpec]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Specs:
    return tiny_vision_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], specs: Specs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the tiny model and its eyes, another encoder, and models whose eyes the catalogue has not."""
    folder, (model, eyes) = tmp_path_factory.mktemp("catalog"), specs
    blind = model.model_copy(update={"id": "tiny-blind", "image_encoder": "nowhere"})
    squinting = model.model_copy(update={"id": "tiny-squinting", "image_encoder": "hash-image"})
    other = EncoderSpec(id="hash-image", modality=Modality.IMAGE, dimension=12, loader="hashing")
    for name, entries in (("models", [model, blind, squinting]), ("encoders", [eyes, other])):
        (folder / f"{name}.json").write_text(json.dumps([entry.model_dump(mode="json") for entry in entries]))
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
    """A worker of each pool."""
    with running_workers(settings, sessions, store, root, POOLS):
        yield


@pytest.fixture(scope="module")
def base(specs: Specs) -> LanguageModel:
    """The same model in the test's own process."""
    return load_language_model(specs[0], device="cpu", precision="fp32")


def pixels(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bright or dark, by turns."""
    low = 0 if number % 2 else 160
    return np.random.default_rng(number).integers(low, low + 90, (12, 20, 3), np.uint8)


def picture(number: int) -> str:
    target = io.BytesIO()
    Image.fromarray(pixels(number)).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


ITEMS = [{"id": f"item-{n:02}", "image": picture(n), "label": "no" if n % 2 else "yes"} for n in range(24)]


def run(client: httpx.Client, **request: Any) -> dict[str, Any]:
    """A job once it has ended."""
    created = client.post("/v1/jobs", json=request)
    assert created.status_code == 202, created.text

    def ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(f"/v1/jobs/{created.json()['id']}").json()
        return shown if shown["status"] in {"succeeded", "failed"} else None

    job = wait_for(ended, what="the end of the job")
    assert job["status"] == "succeeded", job["error"]
    return job


def tune(client: httpx.Client, **options: Any) -> dict[str, Any]:
    asked = {
        "type": "fine_tune", "method": "instruction", "language_model": TINY, "items": ITEMS, "encoders": ENCODERS,
        "prompt": PROMPT, "training": TRAINING,
    }  # fmt: skip
    return run(client, **{**asked, **options})


@pytest.fixture(scope="module")
def tuned(client: httpx.Client, workers: None, sessions: Sessions) -> Model:
    """The model that a job made which named no encoder of pictures."""
    job = tune(client)
    with sessions() as session:
        return session.query(Model).where(Model.job_id == job["id"], Model.kind == "instruction").one()


def said(client: httpx.Client, model: str, number: int) -> str:
    """What it answers in a chat about a picture."""
    content = [{"type": "image_url", "image_url": {"url": picture(number)}}, {"type": "text", "text": "Is it bright?"}]
    turns = [{"role": "user", "content": content}]
    body = {"model": model, "messages": turns, "temperature": 0, "max_tokens": 8, "timeout_seconds": 60}
    answer = client.post("/v1/chat/completions", json=body, timeout=90)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def expected(model: LanguageModel | TunedLanguageModel, encoder: EncoderSpec, number: int) -> str:
    """What the library itself says."""
    eyes = load_encoder(encoder, device="cpu", precision="fp32")
    media = [Media(Modality.IMAGE, eyes.encode([eyes.preprocess(pixels(number))])[0])]
    turn = Message(role="user", content=[MediaPart(type="image"), TextPart(text="Is it bright?")])
    return generate(model, [Prompted([turn], media, Generation(temperature=0, max_tokens=8))])[0].text


def test_a_job_tunes_it_on_pictures_that_it_reads_itself(tuned: Model) -> None:
    """No projector is made, and the base model, that sees as well, is judged beside it."""
    made = tuned.spec["fine_tuned"]
    assert made["encoders"] == {"image": EYES}
    metrics = made["metrics"]
    assert (metrics["image_encoder"], metrics["dimensions"]) == (EYES, {"image": 4 * 32})
    assert {"base", "test", "without_media"} <= metrics.keys()
    shown = metrics["dry_run"]["train"]["shown"][0]["rendered"]
    assert "<fake_token_around_image><global-img>⟨media 0×4⟩<fake_token_around_image>Is it bright?" in shown
    assert "projector.safetensors" not in tuned.spec["files"]


def test_the_tuned_model_and_its_base_are_asked_about_pictures(
    client: httpx.Client, tuned: Model, base: LanguageModel, specs: Specs, store: ObjectStore
) -> None:
    """In chat and predict jobs, which say what the library says."""
    files = {name: store.get(file["key"]) for name, file in tuned.spec["files"].items() if name in FILES}
    model = TunedLanguageModel.load(files, base)
    try:
        assert [said(client, tuned.id, n) for n in (0, 1)] == [expected(model, specs[1], n) for n in (0, 1)]
    finally:
        model.close()
    answers = [said(client, TINY, n) for n in range(4)]
    assert answers == [expected(base, specs[1], n) for n in range(4)]
    job = run(client, type="predict", model=TINY, items=ITEMS[:4], prompt=PROMPT,
              generation={"temperature": 0, "max_tokens": 8})  # fmt: skip
    rows = [json.loads(line) for line in client.get(f"/v1/jobs/{job['id']}/results").text.splitlines()]
    assert [row["prediction"] for row in rows] == answers


def test_a_prompt_makes_a_classifier_of_it(client: httpx.Client, workers: None, sessions: Sessions) -> None:
    """Which weighs the labels of a picture as it is seen."""
    job = run(client, type="fine_tune", method="prompt", language_model=TINY, items=ITEMS, encoders=ENCODERS,
              prompt=PROMPT)  # fmt: skip
    with sessions() as session:
        row = session.query(Model).where(Model.job_id == job["id"], Model.kind == "prompt").one()
    assert row.spec["fine_tuned"]["encoders"] == {"image": EYES}
    job = run(client, type="predict", model=row.id, items=ITEMS[:4])
    rows = [json.loads(line) for line in client.get(f"/v1/jobs/{job['id']}/results").text.splitlines()]
    assert len({tuple(one["probabilities"]) for one in rows}) == 4, "no two pictures are the same to it"


def test_another_encoder_enters_through_a_projector(client: httpx.Client, tuned: Model, sessions: Sessions) -> None:
    """As with any language model; the base model is not shown what is not its own."""
    job = tune(client, encoders={**ENCODERS, "image": "hash-image"})
    with sessions() as session:
        row = session.query(Model).where(Model.job_id == job["id"], Model.kind == "instruction").one()
    metrics = row.spec["fine_tuned"]["metrics"]
    assert (metrics["image_encoder"], metrics["dimensions"]) == (None, {"image": 12})
    assert "projector.safetensors" in row.spec["files"]
    body = {"type": "predict", "model": TINY, "features": job["id"]}
    refused = client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unsuitable_features"), refused.text
    assert wrong_counters(sessions) == []


def test_the_training_of_a_tuned_model_goes_on_with_its_own_eyes(
    client: httpx.Client, tuned: Model, sessions: Sessions
) -> None:
    job = tune(client, language_model=tuned.id, training={**TRAINING, "epochs": 1})
    with sessions() as session:
        row = session.query(Model).where(Model.job_id == job["id"], Model.kind == "instruction").one()
    assert row.spec["fine_tuned"]["metrics"]["image_encoder"] == EYES


@pytest.mark.parametrize(
    ("model", "code"), [("tiny-blind", "unknown_encoder"), ("tiny-squinting", "unsuitable_encoder")]
)
def test_eyes_that_the_catalogue_has_not_are_missed_at_the_door(client: httpx.Client, model: str, code: str) -> None:
    """In jobs and in chat; whoever names another encoder may go on."""
    body = {"type": "fine_tune", "method": "instruction", "language_model": model, "items": ITEMS}
    refused = client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, code), refused.text
    assert refused.json()["error"]["param"] == "encoders.image"
    asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post("/v1/chat/completions", json=asked).json()["error"]["code"] == code
    given = client.post("/v1/jobs", json={**body, "encoders": {**ENCODERS, "image": "mobilenet_v2"}})
    assert given.status_code == 202, given.text
    client.post(f"/v1/jobs/{given.json()['id']}/cancel")
