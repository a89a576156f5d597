"""SIGTERM to a gateway: what is under way ends well, who follows a job goes on elsewhere, and it leaves with 0."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from deploy.local.ports import free_port
from shared.testing.jobs import wait_for
from tests.integration.gateway.conftest import Pools

#: Instead of the 15 s that requests get.
GRACE_SECONDS = 3.0
START = f"import services.gateway.__main__ as gateway; gateway.GRACE_SECONDS = {GRACE_SECONDS}; gateway.main()"
BOUNDARY = "limit"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()

pytestmark = pytest.mark.usefixtures("no_other_jobs")


@contextmanager
def gateway(environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A gateway process, not yet ready, and where it will be reached."""
    port = free_port()
    variables = {**os.environ, **environment, "TRIVIUM_GATEWAY_PORT": str(port)}
    with subprocess.Popen([sys.executable, "-c", START], env=variables) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def wait_ready(url: str) -> None:
    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    wait_for(ready, what="the gateway")


class Upload:
    """An upload that stops in the middle until `go_on` is set."""

    def __init__(self, url: str):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.answer: httpx.Response | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(url,))
        self._thread.start()
        assert self.begun.wait(30)

    def join(self) -> None:
        self._thread.join(60)

    def _run(self, url: str) -> None:
        try:
            self.answer = httpx.post(
                f"{url}/v1/files", content=self._body(), headers=HEADERS, timeout=60, trust_env=False
            )
        except httpx.TransportError as error:
            self.error = error

    def _body(self) -> Iterator[bytes]:
        yield HEAD + b"x" * 3_000_000
        self.begun.set()
        self.go_on.wait(60)
        yield b"y" * 1_000_000 + TAIL


def accepts(url: str) -> bool:
    """Whether a new connection is taken."""
    try:
        httpx.get(f"{url}/healthz", trust_env=False)
    except httpx.TransportError:
        return False
    return True


def test_an_upload_under_way_ends_well(environment: dict[str, str], client: httpx.Client) -> None:
    with gateway(environment) as (process, url):
        wait_ready(url)
        upload = Upload(url)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(url), what="the end of the listening")
        upload.go_on.set()
        upload.join()
        assert upload.answer is not None
        assert upload.answer.json()["bytes"] == 4_000_000
        assert process.wait(GRACE_SECONDS + 10) == 0
    assert client.get(f"/v1/files/{upload.answer.json()['id']}").is_success


def test_an_upload_that_does_not_end_is_broken_off(environment: dict[str, str], client: httpx.Client) -> None:
    before = client.get("/v1/files").json()["data"]
    with gateway(environment) as (process, url):
        wait_ready(url)
        upload = Upload(url)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_SECONDS + 10) == 0
        assert time.monotonic() - began >= GRACE_SECONDS
        upload.go_on.set()
        upload.join()
    assert upload.answer is None or upload.answer.is_error
    assert client.get("/v1/files").json()["data"] == before


def test_a_stream_of_events_goes_on_at_another_gateway(
    environment: dict[str, str], client: httpx.Client, features_request: Callable[..., dict[str, Any]], pools: Pools
) -> None:
    id = client.post("/v1/jobs", json=features_request(8, shard_size=4)).json()["id"]
    seen = []
    with gateway(environment) as (process, url), httpx.Client(base_url=url, timeout=60, trust_env=False) as other:
        wait_ready(url)
        with connect_sse(other, "GET", f"/v1/jobs/{id}/events") as source:
            for event in source.iter_sse():  # a stream that broke off would raise here
                seen.append(event)
                if event.event == "progress":
                    process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_SECONDS + 10) == 0
    pools.run()
    last = [event.id for event in seen if event.event != "progress"][-1]
    with connect_sse(client, "GET", f"/v1/jobs/{id}/events", headers={"Last-Event-ID": last}) as source:
        seen += source.iter_sse()
    kept = [event.event for event in seen if event.event != "progress"]
    assert kept == ["job.queued", "job.running", "stage.finished", "stage.finished", "job.succeeded"]


def test_a_gateway_that_waits_for_postgres_leaves_at_once(environment: dict[str, str]) -> None:
    away = f"postgresql+psycopg://u:p@127.0.0.1:{free_port()}/x"
    variables = {**os.environ, **environment, "TRIVIUM_DATABASE_URL": away}
    command = [sys.executable, "-m", "services.gateway"]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "waits for Postgres" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
