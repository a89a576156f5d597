"""Search while the caller waits: an index that real pools made, searched by each modality for each other."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from sqlalchemy import func, select

from services.audio import tasks as audio
from services.dispatcher.steps.context import SweepContext
from services.dispatcher.steps.deletion import delete_jobs
from services.fusion import tasks as fusion
from services.gateway.deps import Services
from services.image import tasks as image
from services.text import tasks as text
from shared.db import Sessions
from shared.jobs.models import IndexedItem, Model
from shared.ml.feature_parts import vectors_of
from shared.ml.trained import TrainedModel
from shared.queues import Modality, Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.testing.models import add_aligning_model, add_trained_model
from tests.integration.gateway.conftest import hinting_services, running_workers

ENCODERS = {Modality.TEXT: ("hash-text", 16), Modality.IMAGE: ("hash-image", 12), Modality.AUDIO: ("hash-audio", 8)}
POOLS = {
    Queue.TEXT: text.make_pool,
    Queue.IMAGE: image.make_pool,
    Queue.AUDIO: audio.make_pool,
    Queue.FUSION: fusion.make_pool,
}
COUNT = 40


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With deterministic encoders in the catalogue."""
    entries = [{"id": id, "modality": m, "dimension": d, "loader": "hashing"} for m, (id, d) in ENCODERS.items()]
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    file.write_text(json.dumps(entries))
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_INLINE_PLAN_BYTES": str(1024**2),  # there is no dispatcher here
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
def model(sessions: Sessions, store: ObjectStore) -> str:
    return add_aligning_model(sessions, store, ENCODERS)


def picture(seed: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


def sound(seed: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(seed).uniform(-0.5, 0.5, 1600), 16_000, format="WAV")
    return target.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def query(seed: int, *modalities: str) -> dict[str, str]:
    whole = {
        "text": f"words {seed}",
        "image": data_uri("image/png", picture(seed)),
        "audio": data_uri("audio/wav", sound(seed)),
    }
    return {m: whole[m] for m in modalities or whole}


def items() -> list[dict[str, Any]]:
    """Each with two modalities or three, a label of two, and metadata."""
    made = []
    for seed in range(COUNT):
        item: dict[str, Any] = {"id": f"item-{seed}", **query(seed)}
        if seed % 4:
            del item[("text", "image", "audio")[seed % 4 - 1]]
        labels = [f"label-{seed % 2}", *(["both"] if seed % 5 == 0 else [])]
        metadata = {"place": seed % 3, "word": "a\x00b", "nothing": None}
        made.append({**item, "label": labels, "split": ("train", "test")[seed % 2], "metadata": metadata})
    return made


def finished(client: httpx.Client, request: dict[str, Any]) -> str:
    """Creates a job and waits until it has succeeded."""
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 202, answer.text

    def ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(f"/v1/jobs/{answer.json()['id']}").json()
        return shown if shown["status"] in {"succeeded", "failed"} else None

    job = wait_for(ended, seconds=180, what="the end of the job")
    assert job["status"] == "succeeded", job
    return str(job["id"])


@pytest.fixture(scope="module")
def features(client: httpx.Client, workers: None) -> str:
    chosen = {m.value: id for m, (id, _) in ENCODERS.items()}
    return finished(client, {"items": items(), "encoders": chosen, "shard_size": 16})


@pytest.fixture(scope="module")
def index(client: httpx.Client, features: str, model: str) -> str:
    return finished(client, {"type": "index", "features": features, "model": model})


class Expected:
    """What the search must find, computed from the feature set with numpy."""

    def __init__(self, table: Any, model: TrainedModel):
        vectors, self.present = {}, {}
        for modality, (_, dimension) in ENCODERS.items():
            vectors[modality], self.present[modality] = vectors_of(table, modality, dimension)
        self.ids = table.column("id").to_pylist()
        self.projected = model.project(vectors, self.present)

    def ranking(self, by: list[str], seed: int, wanted: list[str], but: str | None = None) -> list[tuple[str, float]]:
        """Ids and cosines, nearest first: of each item by its modality that is nearest."""
        row = self.ids.index(f"item-{seed}")
        middle = np.sum([self.projected[Modality(m)][row] for m in by], axis=0)
        middle /= np.linalg.norm(middle)
        scores = np.full(len(self.ids), -np.inf)
        for m in map(Modality, wanted):
            scores = np.maximum(scores, np.where(self.present[m], self.projected[m] @ middle, -np.inf))
        order = [i for i in np.argsort(-scores) if np.isfinite(scores[i]) and self.ids[i] != but]
        return [(self.ids[i], float(scores[i])) for i in order]


@pytest.fixture(scope="module")
def expected(client: httpx.Client, features: str, model: str, sessions: Sessions, store: ObjectStore) -> Expected:
    table = pq.read_table(io.BytesIO(client.get(f"/v1/jobs/{features}/results?format=parquet").content))
    with sessions() as session:
        files = session.get_one(Model, model).spec["files"]
    return Expected(table, TrainedModel.load({name: store.get(file["key"]) for name, file in files.items()}))


def search(client: httpx.Client, index: str, query: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/search", json={"index": index, "query": query, "timeout_seconds": 60, **more}, timeout=90)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["object"], content["index"]) == ("list", index)
    found: list[dict[str, Any]] = content["data"]
    return found


def check(found: list[dict[str, Any]], ranking: list[tuple[str, float]], limit: int) -> None:
    """The same scores; and the same items, but for those whose scores differ by less than half precision can say."""
    scores = dict(ranking)
    assert len(found) == min(limit, len(ranking))
    assert len({one["id"] for one in found}) == len(found)
    assert [one["score"] for one in found] == pytest.approx([score for _, score in ranking[:limit]], abs=2e-3)
    assert [one["score"] for one in found] == pytest.approx([scores[one["id"]] for one in found], abs=2e-3)


@pytest.mark.parametrize("wanted", ["text", "image", "audio", None])
@pytest.mark.parametrize("by", [["text"], ["image"], ["audio"], ["text", "audio"]], ids="+".join)
def test_every_direction_finds_what_numpy_finds(
    client: httpx.Client, index: str, expected: Expected, by: list[str], wanted: str | None
) -> None:
    """Item 0 has all modalities: by one of them, its others are found as they lie in the space."""
    found = search(client, index, query(0, *by), modality=wanted, limit=12)
    check(found, expected.ranking(by, 0, [wanted] if wanted else list(ENCODERS)), 12)
    if wanted is not None:
        assert {one["modality"] for one in found} == {wanted}


def test_what_is_found_is_said(client: httpx.Client, index: str) -> None:
    [first] = search(client, index, query(0, "text"), modality="text", limit=1)
    assert first.pop("score") == pytest.approx(1, abs=2e-3)
    assert first.pop("image_ref").startswith("data:image/png")
    assert first.pop("audio_ref").startswith("data:audio/wav")
    metadata = {"place": 0, "word": "ab", "nothing": None}
    labels = ["label-0", "both"]
    assert first == {
        "id": "item-0", "modality": "text", "label": labels, "split": "train", "metadata": metadata, "text": "words 0",
    }  # fmt: skip


def test_an_uploaded_file_is_searched_by(client: httpx.Client, index: str) -> None:
    file = client.post("/v1/files", files={"file": ("a.wav", sound(0))}).json()["id"]
    assert search(client, index, {"audio": file}, modality="image") == search(
        client, index, query(0, "audio"), modality="image"
    )


def test_more_like_an_item_of_the_index(client: httpx.Client, index: str, expected: Expected) -> None:
    found = search(client, index, {"id": "item-0"}, modality="image", limit=100)
    check(found, expected.ranking(["text", "image", "audio"], 0, ["image"], but="item-0"), 100)


@pytest.mark.parametrize(
    ("filter", "passes"),
    [
        ({"label": "label-1"}, lambda seed: seed % 2 == 1),
        ({"label": ["both", "none such"]}, lambda seed: seed % 5 == 0),
        ({"split": "test"}, lambda seed: seed % 2 == 1),
        ({"metadata": {"place": 2}}, lambda seed: seed % 3 == 2),
        ({"label": "label-0", "split": "train", "metadata": {"place": 1}}, lambda seed: seed % 6 == 4),
        ({"label": "none such"}, lambda seed: False),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_filters(
    client: httpx.Client, index: str, expected: Expected, filter: Any, passes: Callable[[int], bool], exact: bool
) -> None:
    ranking = [
        (id, score) for id, score in expected.ranking(["audio"], 0, ["image"]) if passes(int(id.removeprefix("item-")))
    ]
    found = search(client, index, query(0, "audio"), modality="image", filter=filter, limit=5, exact=exact)
    check(found, ranking, 5)


def test_an_index_of_items_is_one_job(client: httpx.Client, index: str, model: str) -> None:
    """The items are encoded as the model's were, the feature set stays, and what is found is the same."""
    at_once = finished(client, {"type": "index", "items": items(), "model": model, "shard_size": 16})
    for wanted in (None, "image"):
        ours, theirs = (search(client, job, query(0, "text"), modality=wanted) for job in (at_once, index))
        assert ours == theirs
    assert client.get(f"/v1/jobs/{at_once}/results").text.count("\n") == COUNT
    refused = client.get(f"/v1/jobs/{index}/results")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_results")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"index": "job-none"}, 404, "index_not_found", "index"),
        ({"query": {}}, 422, "invalid_request", "query"),
        ({"query": {"id": "item-0", "text": "x"}}, 422, "invalid_request", "query"),
        ({"query": {"id": "nobody"}}, 404, "item_not_found", "query.id"),
        ({"query": {"text": " "}}, 422, "empty_text", "query.text"),
        ({"query": {"text": "x", "image": "data:image/png;base64,AAAA"}}, 422, "unsupported_format", "query.image"),
        ({"query": {"audio": "file-" + "0" * 26}}, 422, "missing_media", "query.audio"),
        ({"query": {"text": "x" * (1024**2 + 1)}}, 413, "too_large", "items"),
        ({"limit": 101}, 422, "invalid_request", "limit"),
        ({"filter": {"labels": ["x"]}}, 422, "invalid_request", "filter.labels"),
        ({"surprise": 1}, 422, "invalid_request", "surprise"),
    ],
)  # fmt: skip
def test_what_is_refused_at_the_door(
    client: httpx.Client, index: str, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = client.post("/v1/search", json={"index": index, "query": {"text": "x"}, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error


def test_a_feature_set_without_an_index_says_what_to_do(
    client: httpx.Client, index: str, features: str, workers: None
) -> None:
    asked = {"query": {"text": "x"}}
    error = client.post("/v1/search", json={"index": features, **asked}).json()["error"]
    assert error["code"] == "not_an_index"
    assert index in error["message"], "there is one, by another name"
    alone = finished(client, {"items": [{"id": "a", "text": "x"}], "encoders": {"text": "hash-text", "image": None}})
    error = client.post("/v1/search", json={"index": alone, **asked}).json()["error"]
    assert 'a job of type "index"' in error["message"]


def test_a_modality_that_the_index_does_not_have(
    client: httpx.Client, features: str, sessions: Sessions, store: ObjectStore
) -> None:
    two = add_aligning_model(sessions, store, {m: ENCODERS[m] for m in (Modality.TEXT, Modality.IMAGE)})
    job = finished(client, {"type": "index", "features": features, "model": two})
    for change in ({"modality": "audio", "query": {"text": "x"}}, {"query": query(0, "audio")}):
        error = client.post("/v1/search", json={"index": job, **change}).json()["error"]
        assert error["code"] == "no_such_modality"
        assert "text and image" in error["message"]


@pytest.mark.parametrize(("kind", "code"), [("classifier", "unsuitable_model"), ("large", "too_many_dimensions")])
def test_models_that_make_no_index(
    client: httpx.Client, features: str, sessions: Sessions, store: ObjectStore, kind: str, code: str
) -> None:
    if kind == "classifier":
        made = add_trained_model(sessions, store, ENCODERS)
    else:
        made = add_aligning_model(sessions, store, ENCODERS)
        with sessions.begin() as session:
            session.get_one(Model, made).dimension = 513
    answer = client.post("/v1/jobs", json={"type": "index", "features": features, "model": made})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_another_tenant_sees_nothing(stranger: httpx.Client, index: str, features: str, model: str) -> None:
    answer = stranger.post("/v1/search", json={"index": index, "query": {"text": "x"}})
    assert answer.json()["error"]["code"] == "index_not_found"
    answer = stranger.post("/v1/jobs", json={"type": "index", "features": features, "model": model})
    assert answer.status_code == 404


def test_an_index_keeps_its_model_and_goes_with_its_job(
    client: httpx.Client, features: str, services: Services, sessions: Sessions, store: ObjectStore
) -> None:
    own = add_aligning_model(sessions, store, ENCODERS)
    with sessions.begin() as session:
        session.get_one(Model, own).job_id = features
    job = finished(client, {"type": "index", "features": features, "model": own})
    refused = client.delete(f"/v1/models/{own}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")

    def rows() -> int:
        with sessions() as session:
            return session.scalar(select(func.count()).where(IndexedItem.job_id == job)) or 0

    assert rows() == COUNT
    assert client.delete(f"/v1/jobs/{job}").status_code == 200
    assert client.delete(f"/v1/models/{own}").status_code == 200
    answer = client.post("/v1/search", json={"index": job, "query": {"text": "x"}})
    assert answer.json()["error"]["code"] == "index_not_found"
    delete_jobs(SweepContext(services.settings, sessions, store, lambda _: None), datetime.now(UTC))
    assert rows() == 0
