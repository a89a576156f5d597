"""The gateway on real servers: in this process for most tests, behind a real uvicorn where the wire matters."""

import io
import json
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import delete

from services.gateway.app import create_app
from services.gateway.deps import Services
from services.gateway.protocol import LimitedHeadProtocol
from shared.broker import make_broker, send_hints
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.ids import new_id
from shared.jobs import engine
from shared.jobs.keys import create_key
from shared.jobs.models import Job
from shared.jobs.records import Finished, ItemFailure, Lease, NewModel, StoredObject
from shared.language_models import load_language_models
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.testing.workers import make_context, run_pool

DIMENSION = 4
#: The files of the models that the played pool trains, and how good they are.
MODEL = {"model.safetensors": b"weights" * 100, "config.json": b"{}", "README.md": b"# A model"}
METRICS: dict[str, Any] = {
    "main_score": "accuracy",
    "items": {"test": 4},
    "test": {"accuracy": 0.75},
    "alone": {"fused": {"score": 0.75, "low": 0.7, "high": 0.8, "items": 4, "items_there": 4}},
}


def hinting_services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services with the catalogues that the settings name, and hints that reach real workers."""
    broker, models = make_broker(settings), load_language_models(settings.language_models_file)
    catalog = load_catalog(settings.encoders_file)
    return Services(settings, sessions, store, catalog, models, lambda queues: send_hints(broker, queues))


@contextmanager
def running_workers(
    settings: Settings, sessions: Sessions, store: ObjectStore, root: Path, pools: Mapping[Queue, Callable[..., Any]]
) -> Iterator[None]:
    """A worker of each of these pools, in threads of this process."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PYTHONPATH", str(root))  # for the decode processes
        for queue, make_pool in pools.items():
            running.enter_context(run_pool(make_context(settings, sessions, store, queue), make_pool))
        yield


@pytest.fixture(scope="module")
def hints() -> list[set[Queue]]:
    """What the gateway hinted."""
    return []


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore, hints: list[set[Queue]]) -> Services:
    """The gateway's services on the module's database and bucket; hints are kept instead of sent."""
    return Services(
        settings, sessions, store, load_catalog(), load_language_models(), lambda queues: hints.append(set(queues))
    )


@pytest.fixture(scope="module")
def app(services: Services) -> FastAPI:
    """The application."""
    return create_app(services)


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serves an application by uvicorn, in a thread, as `python -m services.gateway` does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=LimitedHeadProtocol, log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    """Where the application is served."""
    with serve(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    """Calls as the tenant `default`, without a key (development mode)."""
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client_of(url: str, sessions: Sessions) -> Iterator[Callable[..., httpx.Client]]:
    """Makes clients with keys of their own."""
    opened: list[httpx.Client] = []

    def make(tenant: str, scope: str = "user") -> httpx.Client:
        with sessions.begin() as session:
            _, key = create_key(session, tenant=tenant, name="test", scope=scope)
        opened.append(httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {key}"}))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture(scope="module")
def stranger(client_of: Callable[..., httpx.Client]) -> httpx.Client:
    """Calls as another tenant."""
    return client_of("stranger")


@pytest.fixture
def no_other_jobs(sessions: Sessions) -> None:
    """Whatever earlier tests left is gone."""
    with sessions.begin() as session:
        session.execute(delete(Job))


@pytest.fixture(scope="module")
def pools(sessions: Sessions, store: ObjectStore) -> "Pools":
    """The worker pools, played by the test."""
    return Pools(sessions, store)


@dataclass
class Pools:
    """Does what workers do, through the engine: items whose index is in `faulty` cannot be read."""

    sessions: Sessions
    store: ObjectStore
    faulty: set[int] = field(default_factory=set)

    def run(self, *queues: Queue) -> int:
        """Works off what is ready; returns how many shards."""
        count = 0
        while leases := [lease for queue in queues or Queue for lease in self.claim(queue)]:
            for lease in leases:
                self.finish(lease)
                count += 1
        return count

    def finish(self, lease: Lease) -> None:
        """Does the work of one shard."""
        with self.sessions.begin() as session:
            engine.start(session, lease)
        work = {Stage.FUSION: self._fuse, Stage.FINE_TUNE: self._train, Stage.PREDICT: self._predict}
        finished = work.get(lease.stage, self._extract)(lease)
        with self.sessions.begin() as session:
            assert engine.finish(session, [finished]) == {lease.shard_id}

    def claim(self, queue: Queue) -> list[Lease]:
        """Up to ten shards."""
        with self.sessions.begin() as session:
            return engine.claim(session, queue, "worker-test", limit=10)

    def fail(self, queue: Queue, code: str = "boom") -> int:
        """Fails what is ready, with no attempt left; returns how many shards."""
        leases = self.claim(queue)
        for lease in leases:
            with self.sessions.begin() as session:
                engine.start(session, lease)
                engine.fail(session, lease, code, "It broke.", max_attempts=1)
        return len(leases)

    def _extract(self, lease: Lease) -> Finished:
        items = [item for item in self._items(lease) if lease.stage in item]
        lost = [
            ItemFailure(item["index"], item["id"], Modality(lease.stage), "corrupt_media", "It cannot be read.")
            for item in items
            if item["index"] in self.faulty
        ]
        stored = self.store.put(keys.shard_result(lease.job_id, lease.stage, lease.index, lease.token), b"vectors")
        return Finished(lease, stored, items_done=len(items), failures=lost)

    def _fuse(self, lease: Lease) -> Finished:
        items = [item for item in self._items(lease) if item["index"] not in self.faulty]
        failed = lease.items - len(items)
        stored = self._write(lease, items)
        return Finished(
            lease, stored, items_done=lease.items, rows=len(items), succeeded=len(items), failed=failed
        )  # fmt: skip

    def _train(self, lease: Lease) -> Finished:
        model = new_id("model")
        stored = {name: self.store.put(keys.model(model, lease.token, name), data) for name, data in MODEL.items()}
        files = {name: {"key": one.key, "sha256": one.sha256, "bytes": one.bytes} for name, one in stored.items()}
        encoders = {modality: encoder["id"] for modality, encoder in lease.schema["encoders"].items()}
        spec = {
            "loader": "fine_tuned",
            "files": files,
            "preprocessing": lease.request["preprocessing"],
            "fine_tuned": {"encoders": encoders, "fusions": ["concat"], "classes": ["a", "b"], "metrics": METRICS},
        }
        made = NewModel(model, lease.request["method"], None, DIMENSION, stored["model.safetensors"].sha256, spec)
        counted = lease.items if "features" in lease.spec else 0
        return Finished(
            lease, stored["model.safetensors"], items_done=lease.items, succeeded=counted, model=made
        )  # fmt: skip

    def _predict(self, lease: Lease) -> Finished:
        rows = [f"item-{index}" for index in range(lease.items)]
        table = pa.table({"id": rows, "prediction": [["a"]] * len(rows), "probability": [0.75] * len(rows)})
        target = io.BytesIO()
        pq.write_table(table, target)
        stored = self.store.put(keys.prediction_part(lease.job_id, lease.index, lease.token), target.getvalue())
        counted = lease.items if "features" in lease.spec else 0
        return Finished(lease, stored, items_done=lease.items, succeeded=counted, rows=lease.items)

    def _items(self, lease: Lease) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.store.get(lease.spec["slice"]["key"]).splitlines()]

    def _write(self, lease: Lease, items: Collection[dict[str, Any]]) -> StoredObject:
        vectors = [vector_of(item["index"]) for item in items]
        table = pa.table(
            {
                "id": pa.array([item["id"] for item in items], pa.string()),
                "text_vector": pa.array(vectors, pa.list_(pa.float32(), DIMENSION)),
                "audio_vector": pa.array([None] * len(items), pa.list_(pa.float32(), DIMENSION)),
                "label": pa.array([item.get("label", []) for item in items], pa.list_(pa.string())),
                "target": pa.array([None] * len(items), pa.string()),
                "split": pa.array([item.get("split") for item in items], pa.string()),
                "metadata": pa.array([json.dumps(item.get("metadata", {})) for item in items], pa.string()),
            }
        ).replace_schema_metadata({"trivium": json.dumps({"job": lease.job_id})})
        target = io.BytesIO()
        pq.write_table(table, target)
        return self.store.put(keys.feature_part(lease.job_id, lease.index, lease.token), target.getvalue())


def vector_of(index: int) -> list[float]:
    """The vector that the played workers give to an item: exact in float32."""
    return [float(x) for x in np.float32([index, 0.1, -1.5, 1e-8])]


@pytest.fixture
def features_request() -> Callable[..., dict[str, Any]]:
    """Makes the body of a job over texts alone."""

    def make(count: int = 10, **options: Any) -> dict[str, Any]:
        items = [{"id": f"item-{i}", "text": f"text {i}"} for i in range(count)]
        return {"items": items, "encoders": {"text": "all-minilm-l6-v2", "image": None, "audio": None}, **options}

    return make
