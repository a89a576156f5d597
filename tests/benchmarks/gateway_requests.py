"""What the limit on the rate of requests costs: `python tests/benchmarks/gateway_requests.py [REQUESTS]`.

Two gateways on the same servers, one without the limit, are asked in turn; medians in milliseconds.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from deploy.local.ports import free_port
from deploy.local.servers import Servers
from services.gateway.app import create_app
from services.gateway.deps import open_services
from services.gateway.middleware import RateLimitMiddleware
from shared.db import make_engine
from shared.migrations.upgrade import upgrade
from shared.observability import configure_logging
from shared.settings import load_settings
from shared.storage.objects import make_store

#: More than can be sent.
RATE = {"TRIVIUM_MAX_REQUESTS_PER_SECOND": "1e6", "TRIVIUM_MAX_REQUEST_BURST": "1000000", "TRIVIUM_LOG_LEVEL": "ERROR"}

BODY = {
    "items": [{"id": f"item-{i}", "text": f"text {i}"} for i in range(10)],
    "encoders": {"image": None, "audio": None},
}


def serve(environment: dict[str, str], port: int, limited: bool) -> None:
    """One gateway."""
    os.environ.update(environment)
    settings = load_settings()
    configure_logging("gateway", settings.log_level)
    with open_services(settings) as services:
        app = create_app(services)
        if not limited:
            app.user_middleware = [one for one in app.user_middleware if one.cls is not RateLimitMiddleware]
        uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)


def main(requests: int) -> None:
    """Prints one JSON line per kind of request."""
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder), durable=False) as servers:
        environment = {**servers.environment, **RATE}
        os.environ.update(environment)
        settings = load_settings()
        engine = make_engine(settings.database_url.get_secret_value())
        upgrade(engine)
        engine.dispose()
        make_store(settings).ensure_bucket()
        with Gateway(environment, limited=True) as limited, Gateway(environment, limited=False) as free:
            compare("POST /v1/jobs, 10 items", requests, limited, free, lambda http: http.post("/v1/jobs", json=BODY))
            compare("GET /v1/jobs", requests, limited, free, lambda http: http.get("/v1/jobs"))


class Gateway:
    """A gateway process, and a client of it."""

    def __init__(self, environment: dict[str, str], *, limited: bool):
        port = free_port()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(environment, port, limited))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def __enter__(self) -> httpx.Client:
        self._process.start()
        while True:
            try:
                self.http.get("/healthz")
                return self.http
            except httpx.TransportError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._process.terminate()
        self._process.join()


def compare(
    name: str, requests: int, limited: httpx.Client, free: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    """Asks both in turn, now one first and now the other."""
    taken: dict[httpx.Client, list[float]] = {limited: [], free: []}
    for turn in range(requests):
        for http in (limited, free) if turn % 2 else (free, limited):
            began = time.perf_counter()
            send(http).raise_for_status()
            taken[http].append((time.perf_counter() - began) * 1000)
    with_limit, without = (statistics.median(times[10:]) for times in taken.values())
    facts: dict[str, Any] = {"request": name, "limited_ms": with_limit, "without_ms": without}
    facts["cost_ms"] = with_limit - without
    print(json.dumps({key: round(x, 2) if isinstance(x, float) else x for key, x in facts.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
