"""Encoders that jobs train, and jobs that name them, through the gateway, the dispatcher and every pool."""

import base64
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from services.audio.tasks import make_pool as make_audio_pool
from services.dispatcher.plan import PlanJob
from services.dispatcher.steps.context import SweepContext
from services.dispatcher.steps.deletion import delete_jobs, retain_jobs
from services.dispatcher.steps.orphans import OrphanSearch
from services.finetune.tasks import make_pool as make_training_pool
from services.fusion.tasks import make_pool as make_fusion_pool
from services.gateway.deps import Services
from services.text.tasks import make_pool as make_text_pool
from shared.broker import make_broker
from shared.catalog import Catalog, load_catalog
from shared.db import Sessions
from shared.jobs import engine
from shared.language_models import load_language_models
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.oracle import missing_objects, unended, unnamed_objects, wrong_counters
from shared.testing.pools import Handlers, claim, work_off
from shared.testing.tiny import sounds, tiny_bert, tiny_cnn, word_order
from shared.worker.context import WorkerContext
from shared.worker.control import Control, DrainedError

QUICK = {"preset": "fast", "training": {"epochs": 20}}
TEXT_ONLY = {"text": "tiny-bert", "image": None, "audio": None}
PARTS = ("train", "train", "train", "train", "validation", "test")

Pools = dict[Queue, Handlers]


@pytest.fixture(scope="module")
def services(
    settings: Settings, sessions: Sessions, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Services:
    """The gateway's, with small encoders in the catalogue."""
    specs = [*load_catalog().values(), tiny_bert(tmp_path_factory.mktemp("bert")), tiny_cnn()]
    return Services(settings, sessions, store, Catalog(specs), load_language_models(), lambda _: None)


@pytest.fixture(scope="module")
def pools(services: Services) -> Iterator[Pools]:
    """Every pool that these jobs need, in this process."""
    small = {"device": "cpu", "precision": "fp32", "decode_processes": 1, "torch_threads": 1, "checkpoint_seconds": 0.0}
    worker = services.settings.worker.model_copy(update=small)
    settings = services.settings.model_copy(update={"worker": worker})

    def context(queue: Queue) -> WorkerContext:
        broker = make_broker(settings)
        return WorkerContext(settings, services.sessions, services.store, broker, services.catalog, queue, "worker")

    makers: dict[Queue, Any] = {
        Queue.AUDIO: make_audio_pool,
        Queue.TEXT: make_text_pool,
        Queue.FUSION: make_fusion_pool,
        Queue.FINE_TUNE: make_training_pool,
    }
    made = {queue: make(context(queue)) for queue, make in makers.items()}
    yield {Queue.PLAN: {Stage.PLAN: PlanJob(context(Queue.PLAN))}, **{q: pool.handlers for q, pool in made.items()}}
    for pool in made.values():
        pool.close()


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Items in which the order of words decides."""
    found = enumerate(word_order(count, seed))
    return [{"id": f"t{i}", "text": text, "label": label, "split": PARTS[i % 6]} for i, (text, label) in found]


def run(client: httpx.Client, services: Services, pools: Pools, body: dict[str, Any]) -> dict[str, Any]:
    """The job, once it has succeeded."""
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    work_off(services.sessions, pools)
    job: dict[str, Any] = client.get(f"/v1/jobs/{answer.json()['id']}").json()
    assert job["status"] == "succeeded", job["error"]
    return job


def upload(client: httpx.Client, items: list[dict[str, Any]]) -> dict[str, str]:
    """A manifest, as a job's `input`."""
    lines = "\n".join(json.dumps(item) for item in items).encode()
    return {"file_id": client.post("/v1/files", files={"file": ("items.jsonl", lines)}).json()["id"]}


def column(client: httpx.Client, job: dict[str, Any], name: str) -> dict[str, Any]:
    """id → value of one column of a job's results."""
    answer = client.get(f"/v1/jobs/{job['id']}/results", params={"format": "parquet"})
    table = pq.read_table(io.BytesIO(answer.content))
    return dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))


def model_of(client: httpx.Client, job: dict[str, Any], kind: str) -> dict[str, Any]:
    """The model of this kind that a job made."""
    models = [client.get(f"/v1/models/{id}").json() for id in job["models"]]
    return next(model for model in models if model["kind"] == kind)


def sweep(services: Services) -> None:
    """Removes what no row names, however young."""
    sweeping = SweepContext(services.settings, services.sessions, services.store, services.hint)
    search, later = OrphanSearch(), datetime.now(UTC) + timedelta(days=1)
    for _ in range(4):
        search(sweeping, later)


def retain(services: Services) -> None:
    """Deletes what is past its retention, a year from now."""
    sweeping = SweepContext(services.settings, services.sessions, services.store, services.hint)
    retain_jobs(sweeping, datetime.now(UTC) + timedelta(days=365))
    delete_jobs(sweeping, datetime.now(UTC))


def check_nothing_is_lost(services: Services) -> None:
    """What must hold after every run, once the sweep has removed what training left to resume from."""
    sweep(services)
    findings = (
        *wrong_counters(services.sessions),
        *unended(services.sessions),
        *missing_objects(services.sessions, services.store),
        *unnamed_objects(services.sessions, services.store),
    )
    assert findings == ()


def test_an_encoder_is_tuned_with_the_head_and_used_from_then_on(
    client: httpx.Client, services: Services, pools: Pools
) -> None:
    """Through LoRA it learns what its pooled vectors did not say; predictions and features then go through it."""
    items = texts(300)
    body = {"type": "fine_tune", "items": items, "encoders": TEXT_ONLY, "train_encoder": "lora", **QUICK}
    body["encoder_training"] = {"epochs": 20, "learning_rate": 1e-2, "patience": 20}
    job = run(client, services, pools, body)
    encoder, classifier = model_of(client, job, "fitted_encoder"), model_of(client, job, "classifier")
    assert (encoder["modality"], encoder["dimension"], encoder["loader"]) == ("text", 32, "transformers")
    assert classifier["fine_tuned"]["encoders"] == {"text": encoder["id"]}

    events = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"}).text
    assert '"training.encoders"' in events
    assert '"encoder":"tiny-bert"' in events.replace(" ", "")

    new = [{"id": f"n{i}", "text": text, "label": label} for i, (text, label) in enumerate(word_order(100, 1))]
    predicted = run(client, services, pools, {"type": "predict", "model": classifier["id"], "items": new})
    said = column(client, predicted, "prediction")
    assert np.mean([said[item["id"]] == [item["label"]] for item in new]) >= 0.9

    named = {**TEXT_ONLY, "text": encoder["id"]}
    features = run(client, services, pools, {"items": items[:20], "encoders": named})
    assert features["stages"]["text"]["items_cached"] == 20
    again, before = column(client, features, "text_vector"), column(client, job, "text_vector")
    assert all(again[id] == before[id] for id in again)
    on_features = run(
        client, services, pools, {"type": "predict", "model": classifier["id"], "features": features["id"]}
    )
    assert len(column(client, on_features, "prediction")) == 20

    refused = client.delete(f"/v1/models/{encoder['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
    check_nothing_is_lost(services)


class Impatient(Control):
    """Has to leave after so many looks."""

    def __init__(self, shard_id: int, looks: int):
        super().__init__(shard_id)
        self._looks = looks

    def check(self) -> None:
        """See Control."""
        self._looks -= 1
        if self._looks < 0:
            self.drain()
        super().check()


def test_a_fit_that_was_broken_off_goes_on_where_it_was(client: httpx.Client, services: Services, pools: Pools) -> None:
    """A worker that leaves hands it back; what the next one makes of it is what would have come of it anyway."""
    body = {"type": "fine_tune", "items": texts(60), "encoders": TEXT_ONLY, "train_encoder": "full", **QUICK}
    whole = model_of(client, run(client, services, pools, body), "fitted_encoder")
    broken_off = client.post("/v1/jobs", json=body).json()
    [lease] = claim(services.sessions, Queue.TEXT)
    fit, control = pools[Queue.TEXT][Stage.FIT], Impatient(lease.shard_id, looks=20)
    with services.sessions.begin() as session:
        engine.start(session, lease)
    with pytest.raises(DrainedError):
        fit.run(lease, fit.prepare(lease, control), control)
    with services.sessions.begin() as session:
        engine.release(session, lease)
    sweep(services)
    work_off(services.sessions, pools)
    job = client.get(f"/v1/jobs/{broken_off['id']}").json()
    assert model_of(client, job, "fitted_encoder")["revision"] == whole["revision"]
    events = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"}).json()["data"]
    epochs = [event["data"]["epoch"] for event in events if event["data"].get("encoder") == "tiny-bert"]
    assert epochs == sorted(set(epochs))
    check_nothing_is_lost(services)


def test_what_items_are_tested_on_does_not_reach_the_encoder(
    client: httpx.Client, services: Services, pools: Pools
) -> None:
    """Other labels of test items, the same weights; another label of a training item, others."""
    items = texts(48)
    body = {"type": "fine_tune", "encoders": TEXT_ONLY, "train_encoder": "full", **QUICK}

    def revision(changed: str) -> str:
        other = [{**item, "label": "cat"} if item["split"] == changed else item for item in items]
        other[0]["label"] = "dog"  # or nothing is left to tell apart
        return str(
            model_of(client, run(client, services, pools, {**body, "items": other}), "fitted_encoder")["revision"]
        )

    before = revision("none")
    assert revision("test") == before
    assert revision("train") != before


def test_two_encoders_are_fitted_in_one_job(client: httpx.Client, services: Services, pools: Pools) -> None:
    """Word2Vec on the texts and a network on the sounds, by their own shards; then both by their ids, from a file."""
    items = [
        {
            "id": f"s{i}", "text": f"sound number {i % 7}", "label": kind, "split": PARTS[i // 4 % 6],
            "audio": "data:audio/wav;base64," + base64.b64encode(data).decode(),
        }
        for i, (data, kind) in enumerate(sounds(96, 0))
    ]  # fmt: skip
    encoders = {"text": "word2vec", "image": None, "audio": "tiny-cnn"}
    body = {"type": "fine_tune", "input": upload(client, items), "encoders": encoders, **QUICK}
    body["encoder_training"] = {"epochs": 12, "learning_rate": 3e-3}
    job = run(client, services, pools, body)
    classifier = model_of(client, job, "classifier")
    used = classifier["fine_tuned"]["encoders"]
    assert {used["text"], used["audio"], classifier["id"]} == set(job["models"])
    metrics = classifier["fine_tuned"]["metrics"]
    assert metrics["items"] == {"train": 64, "validation": 16, "test": 16}

    named = {"text": used["text"], "image": None, "audio": used["audio"]}
    features = run(client, services, pools, {"input": upload(client, items[:8]), "encoders": named})
    again, before = column(client, features, "audio_vector"), column(client, job, "audio_vector")
    np.testing.assert_allclose([again[f"s{i}"] for i in range(8)], [before[f"s{i}"] for i in range(8)], atol=1e-5)

    deleted = client.delete(f"/v1/jobs/{job['id']}")
    assert deleted.status_code == 200
    check_nothing_is_lost(services)


def test_a_models_encoder_stays_while_another_jobs_model_needs_it(
    client: httpx.Client, services: Services, pools: Pools
) -> None:
    """A fitted encoder, and with it the job that made it, goes only after what another job trained on its vectors."""
    words = {"text": "word2vec", "image": None, "audio": None}
    features = run(client, services, pools, {"items": texts(60), "encoders": words})
    trained = run(client, services, pools, {"type": "fine_tune", "features": features["id"], **QUICK})
    [word2vec] = features["models"]
    assert model_of(client, trained, "classifier")["fine_tuned"]["encoders"] == {"text": word2vec}
    for path, code in ((f"models/{word2vec}", "model_in_use"), (f"jobs/{features['id']}", "job_in_use")):
        refused = client.delete(f"/v1/{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, code)
    for kept in ({trained["id"]: 404, features["id"]: 200}, {trained["id"]: 404, features["id"]: 404}):
        retain(services)
        assert {id: client.get(f"/v1/jobs/{id}").status_code for id in kept} == kept


def test_several_labels_folds_and_a_search(client: httpx.Client, services: Services, pools: Pools) -> None:
    """All of it asked for over HTTP; what came of it is shown with the model, and told while it went on."""
    items = [{**item, "label": [item["label"], *(["red"] if "red" in item["text"] else [])]} for item in texts(90)]
    body = {
        "type": "fine_tune", "items": items, "encoders": {**TEXT_ONLY, "text": "word2vec"}, "preset": "best",
        "training": {"epochs": 5, "class_weights": "balanced"}, "splitting": {"folds": 3}, "search": {"trials": 2},
    }  # fmt: skip
    job = run(client, services, pools, body)
    model = model_of(client, job, "classifier")
    assert model["fine_tuned"]["multi_label"] is True
    assert set(model["fine_tuned"]["classes"]) == {"cat", "dog", "red"}
    metrics = model["fine_tuned"]["metrics"]
    assert len(metrics["folds"]["folds"]) == 3
    assert len(metrics["trials"]) == 2
    assert {c["seed"] for c in metrics["candidates"]} == {0, 1, 2}
    assert sum(c["weight"] for c in metrics["candidates"]) == pytest.approx(1)
    events = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"}).json()["data"]
    kinds = [event["type"] for event in events]
    assert kinds.count("training.fold") == 3
    assert {"training.split", "training.warning", "training.model", "training.trial"} <= set(kinds)
    assert kinds.index("training.warning") < kinds.index("training.model")  # said before anything was trained
    predicted = run(client, services, pools, {"type": "predict", "model": model["id"], "items": items[:5]})
    assert all(isinstance(said, list) for said in column(client, predicted, "prediction").values())


FINE_TUNE = {"type": "fine_tune", "train_encoder": "full"}


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"encoders": {"text": "model-none"}}, 404, "model_not_found", "encoders.text"),
        ({"encoders": {"text": None, "audio": "log_mel_cnn"}}, 422, "encoder_not_trained", "encoders.audio"),
        (
            {**FINE_TUNE, "train_encoder": "lora", "encoders": {"text": None, "image": "mobilenet_v2"}},
            422, "invalid_request", "train_encoder",
        ),
        ({**FINE_TUNE, "encoders": {"text": "word2vec"}}, 422, "invalid_request", "train_encoder"),
        (
            {**FINE_TUNE, "method": "align", "encoders": {"audio": "mfcc-stats"}},
            422, "invalid_request", "train_encoder",
        ),
        ({**FINE_TUNE, "splitting": {"folds": 5}}, 422, "invalid_request", "splitting.folds"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_at_the_door(
    client: httpx.Client, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    """In words that name the field."""
    encoders = {**TEXT_ONLY, **change.get("encoders", {})}
    answer = client.post("/v1/jobs", json={"items": texts(12), **change, "encoders": encoders})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_encoders_are_not_trained_on_features(client: httpx.Client, services: Services, pools: Pools) -> None:
    """There is nothing left that they could look at; nor does a model of another kind or modality encode anything."""
    features = run(client, services, pools, {"items": texts(60), "encoders": {**TEXT_ONLY, "text": "word2vec"}})
    body = {"type": "fine_tune", "features": features["id"], "train_encoder": "lora"}
    answer = client.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "train_encoder")
    wrong = {"text": None, "image": None, "audio": features["models"][0]}
    answer = client.post("/v1/jobs", json={"items": texts(1), "encoders": wrong})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsuitable_model")
