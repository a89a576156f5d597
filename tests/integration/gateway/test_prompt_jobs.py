"""Prompt jobs through the gateway, the dispatcher and the pools: from pictures and words to predictions."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from services.dispatcher.plan import PlanJob
from services.finetune.tasks import make_pool as make_training_pool
from services.fusion.tasks import make_pool as make_fusion_pool
from services.gateway.deps import Services
from services.image.tasks import make_pool as make_image_pool
from shared.broker import make_broker
from shared.catalog import Catalog, load_catalog
from shared.db import Sessions
from shared.language_models import load_language_models
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.pools import Handlers, work_off
from shared.testing.tiny import tiny_clip, tiny_language_model
from shared.worker.context import WorkerContext

Pools = dict[Queue, Handlers]
NAMES = ("cat", "dog", "park")
CLIP = {"text": None, "image": "tiny-clip-image", "audio": None}
PARTS = ("train", "train", "validation", "test")


@pytest.fixture(scope="module")
def services(
    settings: Settings, sessions: Sessions, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Services:
    """The gateway's, with a tiny CLIP and a tiny language model in the catalogues."""
    specs = [*load_catalog().values(), *tiny_clip(tmp_path_factory.mktemp("clip"))]
    model = tiny_language_model(tmp_path_factory.mktemp("lm"))
    language_models = {**load_language_models(), model.id: model}
    return Services(settings, sessions, store, Catalog(specs), language_models, lambda _: None)


@pytest.fixture(scope="module")
def pools(services: Services) -> Iterator[Pools]:
    """Every pool that these jobs need, in this process."""
    small = {"device": "cpu", "precision": "fp32", "decode_processes": 1, "torch_threads": 1}
    worker = services.settings.worker.model_copy(update=small)
    settings = services.settings.model_copy(update={"worker": worker})

    def context(queue: Queue) -> WorkerContext:
        return WorkerContext(
            settings, services.sessions, services.store, make_broker(settings), services.catalog, queue, "worker",
            services.language_models,
        )  # fmt: skip

    makers: dict[Queue, Any] = {
        Queue.IMAGE: make_image_pool,
        Queue.FUSION: make_fusion_pool,
        Queue.FINE_TUNE: make_training_pool,
    }
    made = {queue: make(context(queue)) for queue, make in makers.items()}
    yield {Queue.PLAN: {Stage.PLAN: PlanJob(context(Queue.PLAN))}, **{q: pool.handlers for q, pool in made.items()}}
    for pool in made.values():
        pool.close()


def pictures(count: int) -> list[dict[str, Any]]:
    """A colour for each class, with noise."""
    rng, items = np.random.default_rng(0), []
    for i in range(count):
        pixels = np.full((32, 40, 3), 60) + np.eye(3)[i % 3] * 120 + rng.integers(0, 40, (32, 40, 3))
        target = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(target, "PNG")
        image = "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()
        items.append({"id": f"p{i}", "image": image, "label": NAMES[i % 3], "split": PARTS[i // 3 % 4]})
    return items


def run(client: httpx.Client, services: Services, pools: Pools, body: dict[str, Any]) -> dict[str, Any]:
    """The job, once it has succeeded."""
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    work_off(services.sessions, pools)
    job: dict[str, Any] = client.get(f"/v1/jobs/{answer.json()['id']}").json()
    assert job["status"] == "succeeded", job["error"]
    return job


def results(client: httpx.Client, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    answer = client.get(f"/v1/jobs/{job['id']}/results", params={"format": "parquet"})
    return {row["id"]: row for row in pq.read_table(io.BytesIO(answer.content)).to_pylist()}


def test_a_stored_prompt_becomes_a_classifier_that_predicts(
    client: httpx.Client, services: Services, pools: Pools
) -> None:
    """Words are drawn on pictures in training and in prediction alike, and make other vectors than without them."""
    prompt = {"class_templates": ["a {label}", "the {label}"], "image_text": {"text": "动物"}}
    stored = client.post("/v1/prompts", json={"name": "animals", "prompt": prompt}).json()
    items = pictures(48)
    body = {"type": "fine_tune", "method": "prompt", "items": items, "encoders": CLIP, "prompts": [stored["id"]]}
    job = run(client, services, pools, body)
    model = client.get(f"/v1/models/{job['models'][0]}").json()
    assert (model["kind"], model["fine_tuned"]["classes"]) == ("classifier", sorted(NAMES))
    assert model["fine_tuned"]["metrics"]["prompts"][0]["chosen"]
    assert model["fine_tuned"]["metrics"]["how"] == "hard"
    new = [{**item, "id": f"n{i}"} for i, item in enumerate(items[:6])]
    predicted = run(client, services, pools, {"type": "predict", "model": model["id"], "items": new})
    said = results(client, predicted)
    assert predicted["stages"]["image"]["items_cached"] == 6  # the same pictures with the same words
    assert all(row["prediction"][0] in NAMES for row in said.values())
    assert all(row["probability"] > 1 / 3 for row in said.values())
    bare = run(client, services, pools, {"items": new, "encoders": CLIP})
    assert bare["stages"]["image"]["items_cached"] == 0
    drawn = {"image": {"drawn_text": {"text": "动物"}}}
    same = run(client, services, pools, {"items": new, "encoders": CLIP, "preprocessing": drawn})
    assert same["stages"]["image"]["items_cached"] == 6
    assert results(client, same)["n0"]["image_vector"] != results(client, bare)["n0"]["image_vector"]


def test_a_context_and_a_border_are_learned(client: httpx.Client, services: Services, pools: Pools) -> None:
    """The encoder with the border is used by its id from then on, with a context, too."""
    items = pictures(48)
    body = {"type": "fine_tune", "items": items, "encoders": CLIP, "train_encoder": "border", "preset": "fast"}
    body |= {"encoder_training": {"epochs": 2}, "training": {"epochs": 5}}
    job = run(client, services, pools, body)
    models = [client.get(f"/v1/models/{id}").json() for id in job["models"]]
    encoder = next(model for model in models if model["kind"] == "fitted_encoder")
    assert {"border.safetensors", "model.safetensors"} <= set(encoder["files"])
    body = {"type": "fine_tune", "method": "prompt", "how": "context", "context": {"epochs": 3}, "items": items}
    learned = run(client, services, pools, {**body, "encoders": {**CLIP, "image": encoder["id"]}})
    model = client.get(f"/v1/models/{learned['models'][0]}").json()
    assert model["fine_tuned"]["encoders"] == {"image": encoder["id"]}
    assert "context.safetensors" in model["files"]
    events = client.get(f"/v1/jobs/{learned['id']}/events", headers={"Accept": "application/json"}).json()["data"]
    assert any(event["type"] == "training.epoch" for event in events)


def test_a_language_model_is_asked(client: httpx.Client, services: Services, pools: Pools) -> None:
    """Texts alone: nothing is encoded. As it is; with a soft prompt; and what has one, as it is, again."""
    items = [{"id": f"t{i}", "text": f"text {i}", "label": "ab"[i % 2]} for i in range(24)]
    body = {"type": "fine_tune", "method": "prompt", "items": items, "language_model": "tiny-llama"}
    body["encoders"] = {"text": None, "image": None, "audio": None}
    body["prompts"] = [{"template": "{text}?"}, {"template": "Say a or b.\n{text}"}]
    job = run(client, services, pools, body)
    model = client.get(f"/v1/models/{job['models'][0]}").json()
    assert model["kind"] == "prompt"
    metrics = model["fine_tuned"]["metrics"]
    assert len(metrics["prompts"]) == 2
    assert metrics["test"]["items"] > 0
    assert {"config.json", "README.md", "metrics.json"} <= set(model["files"])
    soft = {"how": "soft", "training": {"adapter": "prompt", "virtual_tokens": 4, "epochs": 2, "max_new_tokens": 4}}
    tuned = run(client, services, pools, {**body, "prompts": None, "prompt": body["prompts"][0], **soft})
    model = client.get(f"/v1/models/{tuned['models'][0]}").json()
    assert model["kind"] == "prompt"
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json"} <= set(model["files"])
    assert model["fine_tuned"]["metrics"]["adapter"] == "prompt"
    again = {**body, "prompts": None, "language_model": model["id"]}
    asked = client.get(f"/v1/models/{run(client, services, pools, again)['models'][0]}").json()
    assert "adapter_model.safetensors" in asked["files"]  # the tuned one is asked, and kept as a whole


def test_options_that_do_not_go_together_are_refused(client: httpx.Client) -> None:
    """At the door, naming what to change."""
    asked = {
        "type": "fine_tune", "method": "instruction", "language_model": "tiny-llama",
        "items": [{"id": "a", "text": "x", "label": "y"}], "training": {"adapter": "prefix", "packing": True},
    }  # fmt: skip
    answer = client.post("/v1/jobs", json=asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "training")
    assert "packing" in error["message"]
