"""Predictions while the caller waits: real pools behind a real Redis, and each way in which that can fail."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image
from pydantic import SecretStr
from redis import Redis

from deploy.local import redis as local_redis
from deploy.local.ports import free_port
from deploy.local.servers import Servers
from services.audio import tasks as audio
from services.fusion import tasks as fusion
from services.gateway import interactive
from services.gateway.deps import Services
from services.image import tasks as image
from services.text import tasks as text
from shared.broker import make_broker, send_hints
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.errors import DeadlineError
from shared.jobs.models import Job
from shared.lanes.client import LaneClient
from shared.lanes.messages import Encoded, lane_key
from shared.language_models import load_language_models
from shared.planning.media import enclose
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import submit, wait_for, wait_for_end
from shared.testing.models import add_trained_model
from shared.testing.workers import make_context, run_pool
from tests.integration.gateway.test_health import gateway_with

DIMENSIONS = {Modality.TEXT: 16, Modality.IMAGE: 12, Modality.AUDIO: 8}
POOLS = {
    Queue.TEXT: text.make_pool,
    Queue.IMAGE: image.make_pool,
    Queue.AUDIO: audio.make_pool,
    Queue.FUSION: fusion.make_pool,
}
ENCODERS = {m: (f"hash-{m}", dimension) for m, dimension in DIMENSIONS.items()}


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With deterministic encoders in the catalogue, and one whose weights are nowhere."""
    entries: list[dict[str, Any]] = [
        {"id": id, "modality": m, "dimension": dimension, "loader": "hashing"}
        for m, (id, dimension) in ENCODERS.items()
    ]
    entries.append(
        {"id": "nowhere", "modality": "text", "dimension": 4, "loader": "transformers", "source": "/no/where"}
    )
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    file.write_text(json.dumps(entries))
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_CACHE_BYTES": "0",
    }


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services, with hints that reach the workers."""
    broker = make_broker(settings)
    catalog = load_catalog(settings.encoders_file)
    return Services(
        settings, sessions, store, catalog, load_language_models(), lambda queues: send_hints(broker, queues)
    )


@contextmanager
def worker(environment: dict[str, str], pool: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process of a pool; drained at the end."""
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-m", f"services.{pool}"], env={**os.environ, **environment, "PYTHONPATH": root}, cwd=root
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def model(sessions: Sessions, store: ObjectStore) -> str:
    """A classifier of three classes on all modalities."""
    return add_trained_model(sessions, store, ENCODERS)


@pytest.fixture(scope="module")
def workers(
    settings: Settings, sessions: Sessions, store: ObjectStore, root: Path, client: httpx.Client, model: str
) -> Iterator[None]:
    """A worker of each pool, its decode processes started."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PYTHONPATH", str(root))  # for the decode processes
        for queue, make_pool in POOLS.items():
            running.enter_context(run_pool(make_context(settings, sessions, store, queue), make_pool))
        answer = client.post("/v1/predictions", json=body(model, [full_item(0)], timeout_seconds=60), timeout=90)
        assert answer.status_code == 200, answer.text
        yield


def body(model: str, items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"model": model, "items": items, **more}


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def picture(seed: int, size: int = 8) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def sound(seed: int) -> bytes:
    """A tenth of a second of noise, WAV."""
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(seed).uniform(-0.5, 0.5, 1600), 16_000, format="WAV")
    return target.getvalue()


def full_item(seed: int) -> dict[str, Any]:
    return {
        "id": f"item-{seed}",
        "text": f"words {seed}",
        "image": data_uri("image/png", picture(seed)),
        "audio": data_uri("audio/wav", sound(seed)),
    }


def mixed_items() -> list[dict[str, Any]]:
    """Items with all modalities and with some, in all combinations."""
    items = [full_item(seed) for seed in range(14)]
    for seed, item in enumerate(items):
        for place, modality in enumerate(("text", "image", "audio")):
            if seed % 7 + 1 != 7 and not (seed % 7 + 1) >> place & 1:
                del item[modality]
    return items


def job_predictions(client: httpx.Client, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a predict job says, by item."""
    job = client.post("/v1/jobs", json={"type": "predict", **request}).json()

    def ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").json()
        return shown if shown["status"] in {"succeeded", "failed"} else None

    assert wait_for(ended, what="the end of the predict job")["status"] == "succeeded"
    lines = client.get(f"/v1/jobs/{job['id']}/results").text.splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_the_answers_are_those_of_a_predict_job(client: httpx.Client, workers: None, model: str) -> None:
    items = mixed_items()
    answer = client.post("/v1/predictions", json=body(model, items, contributions=True))
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["object"], content["model"]) == ("list", model)
    assert [entry["id"] for entry in content["data"]] == [item["id"] for item in items]
    expected = job_predictions(client, {"model": model, "items": items, "contributions": True})
    for entry in content["data"]:
        row = expected[entry["id"]]
        assert entry["prediction"] == row["prediction"]
        assert entry["probability"] == pytest.approx(row["probability"], abs=1e-5)
        assert list(entry["probabilities"]) == ["class-0", "class-1", "class-2"]
        assert list(entry["probabilities"].values()) == pytest.approx(row["probabilities"], abs=1e-5)
        moved = {m: row[f"contribution_{m}"] for m in DIMENSIONS}
        assert entry["contributions"] == pytest.approx(moved, abs=1e-5)
        assert entry["errors"] == []
    assert len({entry["probability"] for entry in content["data"]}) == len(items)


def test_what_cannot_be_read_costs_only_its_modality(client: httpx.Client, workers: None, model: str) -> None:
    good = full_item(1)
    file = client.post("/v1/files", files={"file": ("a.png", picture(1))}).json()["id"]
    items = [
        good,
        {**good, "id": "by file", "image": file},
        {**good, "id": "broken", "image": data_uri("image/png", picture(1)[:40])},
        {**good, "id": "missing", "image": "file-" + "0" * 26, "audio": "https://example.com/a.wav"},
        {"id": "empty", "text": " "},
        {"id": "text alone", "text": "words 1"},
    ]
    answer = client.post("/v1/predictions", json=body(model, items)).json()
    by_id = {entry["id"]: entry for entry in answer["data"]}
    codes = {id: [(e["modality"], e["code"]) for e in entry["errors"]] for id, entry in by_id.items()}
    assert codes == {
        "item-1": [],
        "by file": [],
        "broken": [("image", "corrupt_media")],
        "missing": [("image", "missing_media"), ("audio", "missing_media")],
        "empty": [("text", "empty_text"), (None, "no_usable_modality")],
        "text alone": [],
    }
    assert by_id["by file"]["probabilities"] == pytest.approx(by_id["item-1"]["probabilities"])
    assert by_id["missing"]["probabilities"] == pytest.approx(by_id["text alone"]["probabilities"])
    assert by_id["broken"]["probabilities"] != by_id["item-1"]["probabilities"]
    assert by_id["empty"]["prediction"] is None
    assert by_id["item-1"]["contributions"] is None


def test_a_regressor_says_numbers(client: httpx.Client, workers: None, sessions: Sessions, store: ObjectStore) -> None:
    text = {Modality.TEXT: ENCODERS[Modality.TEXT]}
    regressor = add_trained_model(sessions, store, text, classes=0)
    items = [full_item(1), {"id": "deaf", "image": data_uri("image/png", picture(1))}]
    first, second = client.post("/v1/predictions", json=body(regressor, items)).json()["data"]
    assert isinstance(first["prediction"], float)
    assert first["probabilities"] is None
    assert second["errors"][0]["code"] == "no_usable_modality"


def test_many_callers_get_their_own_answers(client: httpx.Client, workers: None, model: str, url: str) -> None:
    requests = [body(model, [full_item(seed), full_item(seed + 1)]) for seed in range(60)]
    alone = [client.post("/v1/predictions", json=request).json() for request in requests[:5]]

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as many:
            return await asyncio.gather(*(many.post("/v1/predictions", json=r, timeout=60) for r in requests))

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200}
    contents = [answer.json() for answer in answers]
    for quiet, busy in zip(alone, contents, strict=False):
        for one, other in zip(quiet["data"], busy["data"], strict=True):
            assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    for content, following in pairwise(contents):
        again, first = content["data"][1]["probabilities"], following["data"][0]["probabilities"]
        assert again == pytest.approx(first, abs=1e-5)
    assert [c["data"][0]["id"] for c in contents] == [f"item-{seed}" for seed in range(60)]


def test_a_running_job_is_not_disturbed(
    client: httpx.Client, workers: None, model: str, settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """The same features with callers in between as without; meanwhile the callers are answered."""
    items = [
        {"id": f"item-{i}", "text": f"text {i}", "image": data_uri("image/png", picture(i, 64))} for i in range(100)
    ]
    encoders = {"text": "hash-text", "image": "hash-image", "audio": None}
    request = {"items": items, "encoders": encoders, "shard_size": 10}

    def finished(id: str) -> bool:
        return bool(client.get(f"/v1/jobs/{id}").json()["status"] == "succeeded")

    busy = submit(settings, sessions, store, request)
    seconds = []

    def ask_once() -> bool:
        began = time.perf_counter()
        answer = client.post("/v1/predictions", json=body(model, [full_item(1)]))
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200
        return finished(busy)

    wait_for(ask_once, what="the end of the job")
    print(f"under a job: median {np.median(seconds) * 1000:.0f} ms of {len(seconds)}")
    quiet = submit(settings, sessions, store, request)
    wait_for(lambda: finished(quiet), what="the end of the second job")
    results = [client.get(f"/v1/jobs/{id}/results").text for id in (busy, quiet)]
    assert results[0].count("\n") == len(items)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "model-none"}, 404, "model_not_found"),
        ({"items": []}, 422, "invalid_request"),
        ({"items": [{"id": f"i{n}", "text": "x"} for n in range(65)]}, 422, "invalid_request"),
        ({"items": [{"id": "a", "text": "x" * 1024**2}, {"id": "b", "text": "y"}]}, 413, "too_large"),
        ({"items": [{"id": "a", "text": "\ud800"}]}, 422, "invalid_unicode"),
        ({"timeout_seconds": 61}, 422, "invalid_request"),
        ({"surprise": 1}, 422, "invalid_request"),
    ],
)
def test_what_is_refused_at_the_door(
    client: httpx.Client, model: str, change: dict[str, Any], status: int, code: str
) -> None:
    content = json.dumps({**body(model, [{"id": "a", "text": "x"}]), **change})
    answer = client.post("/v1/predictions", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_another_tenants_model_is_not_there(stranger: httpx.Client, client: httpx.Client, model: str) -> None:
    request = body(model, [{"id": "a", "text": "x"}])
    assert stranger.post("/v1/predictions", json=request).json()["error"]["code"] == "model_not_found"
    wrong = client.post("/v1/predictions", json=request, headers={"Authorization": "Bearer sk-wrong"})
    assert wrong.status_code == 401


def test_large_files_are_for_jobs(client: httpx.Client, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [client.post("/v1/files", files={"file": ("a.png", picture(n))}).json() for n in range(2)]
    monkeypatch.setattr(interactive, "STORED_BYTES", files[0]["bytes"] + files[1]["bytes"] - 1)
    items = [{"id": file["id"], "image": file["id"]} for file in files]
    answer = client.post("/v1/predictions", json=body(model, items))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_an_encoder_that_a_job_fitted(
    client: httpx.Client, workers: None, settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """The same numbers as from the job's own feature set."""
    items = [{"id": f"item-{i}", "text": "a red bus stops here " * 3 + f"word{i % 5}"} for i in range(20)]
    request = {"items": items, "encoders": {"text": "word2vec", "image": None, "audio": None}}
    id = submit(settings, sessions, store, request)
    wait_for_end(sessions, id)
    with sessions() as session:
        schema = session.get_one(Job, id).schema
    takes = {Modality.TEXT: (schema["fitted_models"]["text"]["id"], schema["dimensions"]["text"])}
    model = add_trained_model(sessions, store, takes)
    data = client.post("/v1/predictions", json=body(model, items)).json()["data"]
    expected = job_predictions(client, {"model": model, "features": id})
    assert len({entry["probability"] for entry in data}) == 5
    for entry in data:
        assert list(entry["probabilities"].values()) == pytest.approx(expected[entry["id"]]["probabilities"], abs=1e-5)


def test_an_encoder_that_cannot_be_loaded_says_so_each_time(
    client: httpx.Client, workers: None, sessions: Sessions, store: ObjectStore
) -> None:
    broken = add_trained_model(sessions, store, {Modality.TEXT: ("nowhere", 4)})
    for _ in range(2):
        answer = client.post("/v1/predictions", json=body(broken, [{"id": "a", "text": "x"}]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "encoder_unavailable")


def test_without_workers_the_answer_is_504_and_a_full_lane_429(
    services: Services, servers: Servers, model: str
) -> None:
    url = servers.redis.url(1)
    limits = services.settings.limits.model_copy(update={"lane_requests": 2})
    statuses: list[int] = []
    with gateway_with(services, redis_url=SecretStr(url), limits=limits) as gateway, Redis.from_url(url) as redis:
        request = body(model, [{"id": "a", "text": "x"}], timeout_seconds=2)

        def ask() -> None:
            answer = gateway.post("/v1/predictions", json=request)
            statuses.append(answer.status_code)
            assert answer.json()["error"]["code"] == "deadline_exceeded"

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: redis.llen(lane_key(Stage.TEXT, "hash-text")) == 2, what="two requests in the lane")
        full = gateway.post("/v1/predictions", json=request)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "lane_full")
        assert int(full.headers["retry-after"]) > 0
        for thread in threads:
            thread.join()
        assert statuses == [504, 504]
        metrics = gateway.get("/metrics").text
    assert 'trivium_lane_seconds_count{outcome="deadline_exceeded",stage="text"} 2.0' in metrics


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[local_redis.Redis]:
    """A Redis that may be stopped."""
    server = local_redis.Redis(tmp_path / "redis", port=free_port(), password="p", log=tmp_path / "redis.log")
    server.start()
    yield server
    server.stop()


def test_redis_may_go_and_come_back(
    services: Services,
    environment: dict[str, str],
    own_redis: local_redis.Redis,
    sessions: Sessions,
    store: ObjectStore,
) -> None:
    """503 while it is away, also for those who wait; afterwards the same gateway and workers answer again."""
    model = add_trained_model(sessions, store, {Modality.TEXT: ENCODERS[Modality.TEXT]})
    request = body(model, [{"id": "a", "text": "x"}], timeout_seconds=30)
    changed = services.settings.model_copy(update={"redis_url": SecretStr(own_redis.url())})

    def running(queue: Queue) -> AbstractContextManager[Any]:
        return run_pool(make_context(changed, sessions, store, queue), POOLS[queue])

    with gateway_with(services, redis_url=changed.redis_url) as gateway:
        waiting: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: waiting.append(gateway.post("/v1/predictions", json=request)))
        thread.start()
        with Redis.from_url(own_redis.url()) as redis:
            wait_for(lambda: redis.llen(lane_key(Stage.TEXT, "hash-text")) == 1, what="the request")
        own_redis.stop()
        thread.join()
        refused = gateway.post("/v1/predictions", json=request)
        for answer in (*waiting, refused):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        with running(Queue.TEXT), running(Queue.FUSION):
            own_redis.start()
            assert gateway.post("/v1/predictions", json=request).status_code == 200
            own_redis.stop()
            assert gateway.post("/v1/predictions", json=request).status_code == 503
            own_redis.start()
            assert gateway.post("/v1/predictions", json=request).status_code == 200


async def test_what_a_killed_worker_had_in_hand_is_lost_and_nothing_else(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore, servers: Servers
) -> None:
    """The caller is told at the deadline; the next request is another worker's."""
    url, lane = servers.redis.url(2), lane_key(Stage.IMAGE, "hash-image")
    variables = {**environment, "TRIVIUM_REDIS_URL": url}
    lanes = LaneClient(url, 64)

    async def ask(seconds: float) -> Encoded:
        media = [enclose(picture(1), "picture")]
        return await lanes.encode(
            Modality.IMAGE, "hash-image", media, {}, tenant="default", deadline=time.time() + seconds
        )

    with worker(variables, "image") as victim:
        first = await ask(60)
        decoders = [p for p in psutil.Process(victim.pid).children() if "shared.worker.decode" in p.cmdline()]
        for decoder in decoders:
            decoder.suspend()
        with Redis.from_url(url) as redis:
            before = pushes(redis)
            lost = asyncio.create_task(ask(5))
            await asyncio.to_thread(wait_for, lambda: pushes(redis) > before, what="the request")
            await asyncio.to_thread(wait_for, lambda: redis.llen(lane) == 0, what="the worker to take it")
        victim.kill()
        for decoder in decoders:
            with suppress(psutil.NoSuchProcess):
                decoder.kill()
        with pytest.raises(DeadlineError):
            await lost
    changed = settings.model_copy(update={"redis_url": SecretStr(url)})
    with run_pool(make_context(changed, sessions, store, Queue.IMAGE), image.make_pool):
        again = await ask(60)
    np.testing.assert_array_equal(again.vectors.array(), first.vectors.array())
    await lanes.close()


def pushes(redis: "Redis") -> int:
    """How often something was appended to a list."""
    return int(redis.info("commandstats")["cmdstat_rpush"]["calls"])
