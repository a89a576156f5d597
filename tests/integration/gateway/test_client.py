"""The Python client and the command line against the real gateway: every route that they call."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi import FastAPI
from structlog.testing import capture_logs
from typer.testing import CliRunner

from services.client import (
    AsyncClient,
    AuthenticationFailed,
    Client,
    Conflict,
    InvalidRequest,
    NotFound,
    Retries,
)
from services.client.cli import app as cli
from services.client.commands.options import Connection
from services.gateway.app import create_app
from shared.queues import Queue
from shared.schemas import Job, JobStatus
from tests.integration.gateway.conftest import MODEL, Pools, vector_of

pytestmark = pytest.mark.usefixtures("no_other_jobs")

TEXT_ONLY = {"text": "all-minilm-l6-v2", "image": None, "audio": None}


@pytest.fixture
def trivium(url: str) -> Iterator[Client]:
    """The client under test, as the tenant `default`."""
    with Client(url) as client:
        yield client


def texts(count: int) -> list[dict[str, str]]:
    return [{"id": f"item-{i}", "text": f"text {i}"} for i in range(count)]


def submit(trivium: Client, count: int = 10, **options: Any) -> Job:
    return trivium.features(texts(count), encoders=TEXT_ONLY, **options)


def test_a_job_from_items_to_results(trivium: Client, pools: Pools, tmp_path: Path) -> None:
    job = submit(trivium, shard_size=4, metadata={"project": "x"})
    assert job.status is JobStatus.RUNNING
    pools.run()
    assert trivium.jobs.wait(job.id, timeout=10).status is JobStatus.SUCCEEDED
    types = [event.type for event in trivium.jobs.events(job.id)]
    assert types == ["job.queued", "job.running", "stage.finished", "stage.finished", "job.succeeded"]
    table = pq.read_table(trivium.jobs.results(job.id, tmp_path / "features.parquet"))
    assert table.column("text_vector").to_pylist() == [vector_of(i) for i in range(10)]
    trivium.jobs.results(job.id, tmp_path / "features.jsonl", format="jsonl")
    lines = (tmp_path / "features.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"item-{i}" for i in range(10)]
    trivium.jobs.results(job.id, tmp_path / "features.npz", format="npz")
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["text_vector"].shape == (10, 4)
    parts = list(trivium.jobs.parts(job.id, limit=2))
    assert [part.rows for part in parts] == [4, 4, 2]
    assert parts[0].url is not None
    assert len(httpx.get(parts[0].url).content) == parts[0].bytes
    assert trivium.jobs.delete(job.id).deleted
    with pytest.raises(NotFound) as caught:
        trivium.jobs.get(job.id)
    assert caught.value.error_code == "job_not_found"
    assert caught.value.request_id


def test_events_arrive_while_the_job_runs(trivium: Client, pools: Pools) -> None:
    job = submit(trivium)
    seen = []
    for event in trivium.jobs.events(job.id):
        seen.append(event)
        if event.type == "progress":
            pools.run()
    assert seen[-1].type == "job.succeeded"
    assert {"status", "items", "stages"} <= next(e for e in seen if e.type == "progress").data.keys()
    assert list(trivium.jobs.events(job.id, after=seen[-1].id)) == []
    behind_the_first = [event.id for event in trivium.jobs.events(job.id, after=seen[0].id)]
    assert behind_the_first == [event.id for event in seen[1:] if event.type != "progress"]


def test_errors_and_retry(trivium: Client, pools: Pools) -> None:
    job = submit(trivium)
    pools.faulty.update({3, 7})
    try:
        pools.run()
    finally:
        pools.faulty.clear()
    errors = list(trivium.jobs.errors(job.id, limit=1))
    assert [(e.item_id, e.modality, e.code) for e in errors] == [
        ("item-3", "text", "corrupt_media"), ("item-7", "text", "corrupt_media"),
    ]  # fmt: skip
    assert trivium.jobs.retry(job.id).status is JobStatus.RUNNING
    pools.run()
    assert trivium.jobs.get(job.id).items.succeeded == 10
    with pytest.raises(Conflict) as caught:
        trivium.jobs.retry(job.id)
    assert caught.value.error_code == "nothing_to_retry"


def train(trivium: Client, pools: Pools, source: Any = None, **options: Any) -> Job:
    job = trivium.fine_tune(source or texts(10), **options)
    pools.run()
    return trivium.jobs.wait(job.id, timeout=10)


def test_a_model_from_items_to_predictions(trivium: Client, pools: Pools, tmp_path: Path) -> None:
    job = train(trivium, pools, preset="fast", encoders=TEXT_ONLY, training={"epochs": 3}, shard_size=4)
    assert (job.status, job.type, job.request["training"]["epochs"]) == (JobStatus.SUCCEEDED, "fine_tune", 3)
    [id] = job.models
    model = trivium.models.get(id)
    assert model in list(trivium.models.list())
    assert model.fine_tuned is not None
    assert (model.kind, model.fine_tuned.encoders) == ("classifier", {"text": "all-minilm-l6-v2"})
    folder = trivium.models.download(id, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL
    said = trivium.predict([{"id": "item-0", "text": "a"}], model=id, contributions=False)
    assert said.request["contributions"] is False
    with pytest.raises(Conflict) as caught:
        trivium.models.delete(id)
    assert caught.value.error_code == "model_in_use"
    pools.run()
    path = trivium.jobs.results(trivium.jobs.wait(said.id, timeout=10).id, tmp_path / "predictions.parquet")
    assert pq.read_table(path).column("prediction").to_pylist() == [["a"]]
    assert trivium.models.delete(id).deleted
    with pytest.raises(NotFound):
        trivium.models.get(id)


def test_training_and_predicting_on_a_feature_set(trivium: Client, pools: Pools, tmp_path: Path) -> None:
    features = submit(trivium, shard_size=4)
    pools.run()
    trained = train(trivium, pools, features.id, method="regressor", fusion={"method": "concat", "parameters": {}})
    assert list(trained.stages) == ["fine_tune"]
    said = trivium.predict(features.id, model=trained.models[0])
    pools.run()
    trivium.jobs.results(said.id, tmp_path / "predictions.jsonl", format="jsonl")
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 10


def test_cancelling(trivium: Client) -> None:
    job = submit(trivium)
    assert trivium.jobs.cancel(job.id).status is JobStatus.CANCELLED
    with pytest.raises(Conflict):
        trivium.jobs.retry(job.id)


def test_lists_and_filters(trivium: Client) -> None:
    ids = [submit(trivium, 1, metadata={"list": "yes"}).id for _ in range(5)]
    trivium.jobs.cancel(ids[0])
    assert [job.id for job in trivium.jobs.list(metadata={"list": "yes"}, limit=2)] == ids[::-1]
    wanted = [JobStatus.CANCELLED]
    assert [job.id for job in trivium.jobs.list(metadata={"list": "yes"}, status=wanted)] == ids[:1]


def test_an_idempotency_key_of_another_request(trivium: Client) -> None:
    first = trivium.jobs.create(items=texts(1), encoders=TEXT_ONLY, idempotency_key="k1")
    again = trivium.jobs.create(items=texts(1), encoders=TEXT_ONLY, idempotency_key="k1")
    assert first.id == again.id
    with pytest.raises(InvalidRequest) as caught:
        trivium.jobs.create(items=texts(2), encoders=TEXT_ONLY, idempotency_key="k1")
    assert caught.value.error_code == "idempotency_key_reused"


def test_what_the_gateway_refuses(trivium: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        trivium.features(texts(1), encoders={"text": "no-such-encoder"})
    assert (caught.value.error_code, caught.value.param) == ("unknown_encoder", "encoders.text")
    with pytest.raises(InvalidRequest) as caught:
        trivium.fine_tune(texts(1), training={"epochs": 0})
    assert caught.value.param == "training.epochs"
    with pytest.raises(NotFound) as missing:
        trivium.predict(texts(1), model="model-01k9w0e1a4b7c2d5f8g3h6j9km")
    assert missing.value.error_code == "model_not_found"
    with pytest.raises(InvalidRequest) as caught:
        trivium.features([{"id": "1"}])
    assert caught.value.param == "items.0"


def test_files(trivium: Client, url: str, tmp_path: Path) -> None:
    path = tmp_path / "ünï “code”.bin"
    path.write_bytes(b"\x00\xff" * 500_000)
    sent: list[tuple[int, int | None]] = []
    file = trivium.files.upload(path, on_bytes=lambda *progress: sent.append(progress))
    assert (file.bytes, file.filename) == (1_000_000, path.name)
    assert sent[-1] == (1_000_000, 1_000_000)
    assert httpx.get(f"{url}/v1/files/{file.id}/content").content == path.read_bytes()
    assert trivium.files.get(file.id) == file
    assert file in list(trivium.files.list(limit=1))
    assert trivium.files.delete(file.id).deleted
    with pytest.raises(NotFound):
        trivium.files.get(file.id)


def test_a_manifest_and_its_media_arrive_as_one_archive(trivium: Client, url: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"picture")
    manifest = tmp_path / "data.jsonl"
    manifest.write_text('{"id": "1", "image": "pictures/a.png"}\n')
    job = trivium.features(manifest)
    file = trivium.files.get(job.request["input"]["file_id"])
    assert (file.filename, file.content_type) == ("data.tar", "application/x-tar")
    assert b"picture" in httpx.get(f"{url}/v1/files/{file.id}/content").content
    with pytest.raises(Conflict) as caught:
        trivium.files.delete(file.id)
    assert caught.value.error_code == "file_in_use"


def test_models_and_workers(trivium: Client) -> None:
    models = {model.id: model for model in trivium.models.list(limit=5)}
    assert models["mobilenet_v2"].dimension == 1280
    assert trivium.models.get("mobilenet_v2") == models["mobilenet_v2"]
    assert list(trivium.workers.list()) == []


def test_keys(trivium: Client, url: str) -> None:
    made = trivium.keys.create(name="laptop", tenant="lab", scope="user")
    with Client(url, made.key) as lab:
        assert list(lab.jobs.list()) == []
        with pytest.raises(AuthenticationFailed) as caught:
            lab.keys.create()
        assert caught.value.status_code == 403
    assert made.id in [key.id for key in trivium.keys.list()]
    assert trivium.keys.revoke(made.id).revoked_at is not None
    with Client(url, made.key) as revoked, pytest.raises(AuthenticationFailed):
        revoked.models.get("mobilenet_v2")


def test_the_asynchronous_face(url: str, pools: Pools, tmp_path: Path) -> None:
    async def run() -> tuple[list[str], list[str]]:
        async with AsyncClient(url) as trivium:
            jobs = await asyncio.gather(*[trivium.features(texts(3), encoders=TEXT_ONLY) for _ in range(3)])
            types = [event.type async for event in follow(trivium, jobs[0].id)]
            ended = await asyncio.gather(*[trivium.jobs.wait(job.id, timeout=20) for job in jobs])
            await trivium.jobs.results(jobs[0].id, tmp_path / "features.parquet")
            trained = await trivium.fine_tune(jobs[0].id)
            await asyncio.to_thread(pools.run)
            [model] = (await trivium.jobs.wait(trained.id, timeout=20)).models
            await trivium.models.download(model, tmp_path / "model")
            await trivium.predict(jobs[0].id, model=model)
            return types, [job.status.value for job in ended]

    async def follow(trivium: AsyncClient, id: str) -> Any:
        async for event in trivium.jobs.events(id):
            if event.type == "progress":
                await asyncio.to_thread(pools.run)
            yield event

    types, statuses = asyncio.run(run())
    assert types[-1] == "job.succeeded"
    assert statuses == ["succeeded"] * 3
    assert pq.read_table(tmp_path / "features.parquet").num_rows == 3
    assert (tmp_path / "model" / "README.md").read_bytes() == MODEL["README.md"]


@contextmanager
def serving(app: FastAPI, port: int) -> Iterator[None]:
    """The gateway on a port of its own, that it can be stopped and started again."""
    config = uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def test_watching_goes_on_through_a_restart_of_the_gateway(app: FastAPI, pools: Pools) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    patient = Retries(limit=50, base=0.1, ceiling=0.2)
    first_progress = threading.Event()
    seen = []

    def follow() -> None:
        with Client(f"http://127.0.0.1:{port}", retries=patient) as trivium:
            job = submit(trivium)
            for event in trivium.jobs.events(job.id):
                seen.append(event)
                if event.type == "progress":
                    first_progress.set()

    watcher = threading.Thread(target=follow)
    with serving(create_app(app.state.services), port):
        watcher.start()
        assert first_progress.wait(20)
    pools.run(Queue.TEXT)
    with serving(create_app(app.state.services), port):
        pools.run(Queue.FUSION)
        watcher.join(30)
        assert not watcher.is_alive()
    kept = [event for event in seen if event.type != "progress"]
    assert [event.type for event in kept] == [
        "job.queued", "job.running", "stage.finished", "stage.finished", "job.succeeded",
    ]  # fmt: skip
    assert len({event.id for event in kept}) == len(kept)


class TestCommandLine:
    @pytest.fixture
    def run(self, url: str) -> Callable[..., Any]:
        """Runs `trivium`; what the gateway's thread logs meanwhile does not go to the captured stdout."""

        def run(*arguments: str) -> Any:
            with capture_logs():
                return CliRunner().invoke(cli, arguments, obj=Connection(url))

        return run

    def test_a_job(self, run: Callable[..., Any], trivium: Client, pools: Pools, tmp_path: Path) -> None:
        job = submit(trivium, metadata={"cli": "yes"})
        pools.run()
        watched = run("watch", job.id)
        assert (watched.exit_code, watched.stdout) == (0, "")
        assert "10: 10 succeeded, 0 partial, 0 failed" in watched.stderr
        target = tmp_path / "features.parquet"
        assert run("results", job.id, "-o", str(target)).exit_code == 0
        assert pq.read_table(target).num_rows == 10
        assert run("jobs", "--metadata", "cli=yes", "--json").stdout == job_line(trivium, job.id)
        assert "succeeded" in run("show", job.id).stdout
        assert run("errors", job.id, "--json").stdout == ""
        assert run("delete", job.id).exit_code == 0

    def test_submit(self, run: Callable[..., Any], trivium: Client, tmp_path: Path) -> None:
        manifest = tmp_path / "data.jsonl"
        manifest.write_text('{"id": "1", "text": "a"}\n')
        submitted = run("submit", str(manifest), "--image", "none", "--audio", "none", "--fusion", "none")
        assert submitted.exit_code == 0
        job = trivium.jobs.get(submitted.stdout.strip())
        assert job.request["encoders"] == TEXT_ONLY
        assert job.request["fusion"]["method"] == "none"
        assert run("cancel", job.id).exit_code == 0
        refused = run("submit", str(manifest), "--text", "no-such-encoder")
        assert refused.exit_code == 1
        assert "unknown_encoder, at encoders.text" in refused.stderr

    def test_a_model(self, run: Callable[..., Any], trivium: Client, pools: Pools, tmp_path: Path) -> None:
        features = submit(trivium)
        pools.run()
        created = run("train", features.id, "--preset", "fast", "--set", "patience=3")
        assert created.exit_code == 0
        pools.run()
        job = trivium.jobs.get(created.stdout.strip())
        assert (job.request["preset"], job.request["training"]["patience"]) == ("fast", 3)
        assert job.models[0] in run("show", job.id).stdout
        [model] = job.models
        assert "accuracy 0.750 on 4 test items" in run("models").stdout
        assert "0.700 … 0.800" in run("model", "show", model).stdout
        assert run("model", "download", model, "-o", str(tmp_path / "model")).exit_code == 0
        assert (tmp_path / "model" / "config.json").read_bytes() == MODEL["config.json"]
        predicted = run("predict", features.id, "--model", model)
        assert predicted.exit_code == 0
        pools.run()
        target = tmp_path / "predictions.parquet"
        assert run("results", predicted.stdout.strip(), "-o", str(target)).exit_code == 0
        assert pq.read_table(target).num_rows == 10
        assert run("model", "delete", model).exit_code == 0
        refused = run("predict", features.id, "--model", model)
        assert refused.exit_code == 1
        assert "model_not_found" in refused.stderr

    def test_lists(self, run: Callable[..., Any]) -> None:
        assert "all-minilm-l6-v2" in run("models").stdout
        assert run("workers", "--json").stdout == ""
        assert run("files", "list").exit_code == 0
        assert run("keys", "list").exit_code == 0


def job_line(trivium: Client, id: str) -> str:
    return trivium.jobs.get(id).model_dump_json() + "\n"
