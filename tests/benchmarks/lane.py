"""How long callers wait for a prediction, with idle workers and under a bulk job: `python tests/benchmarks/lane.py`.

    python tests/benchmarks/lane.py [REQUESTS [PICTURES]]

A gateway and a worker of each pool on the embedded servers; each request is one item with a text and a picture, for a
model on the default encoders. The bulk job is that many pictures with texts, none of them equal. Prints one JSON line
for each state, in milliseconds, then the ratios.
"""

import base64
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from deploy.local.servers import Servers
from services.gateway.app import create_app
from services.gateway.deps import open_services
from shared.catalog import load_catalog
from shared.db import Sessions, make_engine, make_sessions
from shared.jobs.models import JobStage
from shared.migrations.upgrade import upgrade
from shared.observability import configure_logging
from shared.queues import Modality
from shared.settings import Settings, load_settings
from shared.storage.objects import ObjectStore, make_store
from shared.testing.jobs import submit, wait_for
from shared.testing.models import add_trained_model

ENCODERS = {Modality.TEXT: "all-minilm-l6-v2", Modality.IMAGE: "mobilenet_v2"}
POOLS = ("text", "image", "fusion")


def item(seed: int) -> dict[str, str]:
    """A text and a picture of 256×256 smooth noise, about 15 kB of JPEG."""
    small = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(small).resize((256, 256)).save(target, "JPEG", quality=90)
    picture = "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
    return {"id": f"item-{seed}", "text": f"A picture of noise, number {seed}, in many colours.", "image": picture}


def serve(environment: dict[str, str], port: int) -> None:
    """The gateway."""
    os.environ.update(environment)
    settings = load_settings()
    configure_logging("gateway", "ERROR")
    with open_services(settings) as services:
        uvicorn.run(create_app(services), host="127.0.0.1", port=port, log_config=None, access_log=False)


def measure(client: httpx.Client, model: str, count: int) -> dict[str, float]:
    """Latencies of requests, one after the other."""
    milliseconds = []
    for seed in range(count):
        body = {"model": model, "items": [item(1_000_000 + seed)], "timeout_seconds": 30}
        began = time.perf_counter()
        answer = client.post("/v1/predictions", json=body)
        milliseconds.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()
    return {"median": round(float(np.median(milliseconds)), 1), "p95": round(float(np.percentile(milliseconds, 95)), 1)}


def shards_done(sessions: Sessions, job_id: str) -> int:
    """Shards of pictures that are done."""
    with sessions() as session:
        return session.get_one(JobStage, (job_id, "image")).shards_done


def run(settings: Settings, sessions: Sessions, store: ObjectStore, url: str, requests: int, pictures: int) -> None:
    """Prints what the callers see."""
    catalog = load_catalog()
    model = add_trained_model(sessions, store, {m: (id, catalog[id].dimension) for m, id in ENCODERS.items()})
    first: dict[str, Any] = {"model": model, "items": [item(0)], "timeout_seconds": 60}
    with httpx.Client(base_url=url, timeout=60) as client:

        def warm() -> bool:
            try:
                return client.post("/v1/predictions", json=first).status_code == 200
            except httpx.TransportError:
                return False

        wait_for(warm, seconds=300, what="the first answer")
        idle = measure(client, model, requests)
        print(json.dumps({"workers": "idle", "requests": requests, **idle}))
        encoders = {**ENCODERS, Modality.AUDIO: None}
        bulk = {"items": [item(seed) for seed in range(pictures)], "encoders": encoders}
        job = submit(settings, sessions, store, bulk)
        wait_for(lambda: shards_done(sessions, job) > 0, seconds=120, what="the first shard")
        done, began = shards_done(sessions, job), time.perf_counter()
        wait_for(lambda: shards_done(sessions, job) >= done + 3, seconds=120, what="three shards more")
        alone = 3 * 256 / (time.perf_counter() - began)
        done, began = shards_done(sessions, job), time.perf_counter()
        busy = measure(client, model, requests)
        beside = (shards_done(sessions, job) - done) * 256 / (time.perf_counter() - began)
        rates = {"pictures a second": round(beside), "without callers": round(alone)}
        print(json.dumps({"workers": "under a bulk job", **rates, **busy}))
    print(json.dumps({"ratio": {name: round(busy[name] / idle[name], 1) for name in idle}}))


def main(requests: int = 100, pictures: int = 6000) -> None:
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder), durable=False) as servers, ExitStack() as stack:
        port = servers.gateway_port
        environment = {**servers.environment, "TRIVIUM_LOG_LEVEL": "ERROR", "TRIVIUM_CACHE_BYTES": "0"}
        os.environ.update(environment)
        settings = load_settings()
        engine = make_engine(settings.database_url.get_secret_value())
        upgrade(engine)
        make_store(settings).ensure_bucket()
        gateway = multiprocessing.get_context("spawn").Process(target=serve, args=(environment, port), daemon=True)
        gateway.start()
        stack.callback(gateway.kill)
        for pool in POOLS:
            worker = subprocess.Popen([sys.executable, "-m", f"services.{pool}"], cwd=root)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
        url = f"http://127.0.0.1:{port}"
        run(settings, make_sessions(engine), make_store(settings), url, requests, pictures)
        engine.dispose()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
