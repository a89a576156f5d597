"""The embedded stack as a whole, with small programs in place of the services."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local import stack as stack_module
from deploy.local.folder import DataFolder
from deploy.local.process import StartError
from deploy.local.stack import Service, Stack
from deploy.local.supervisor import Backoff
from shared.errors import InvalidRequestError

MIGRATIONS = """
import os, psycopg
with psycopg.connect(os.environ["TRIVIUM_DATABASE_URL"].replace("+psycopg", "")) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS fake_workers (pid int, pool text)")
"""
GATEWAY = """
import json, os, psycopg
from http.server import BaseHTTPRequestHandler, HTTPServer

class Gateway(BaseHTTPRequestHandler):
    def do_GET(self):
        with psycopg.connect(os.environ["TRIVIUM_DATABASE_URL"].replace("+psycopg", "")) as connection:
            rows = connection.execute("SELECT pid, pool FROM fake_workers").fetchall()
        self.send_response(200)
        self.end_headers()
        workers = [{"id": str(pid), "pid": pid, "pool": pool, "state": "idle"} for pid, pool in rows]
        self.wfile.write(json.dumps({"object": "list", "data": workers}).encode())

HTTPServer((os.environ["TRIVIUM_GATEWAY_HOST"], int(os.environ["TRIVIUM_GATEWAY_PORT"])), Gateway).serve_forever()
"""
WORKER = """
import os, psycopg, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with psycopg.connect(os.environ["TRIVIUM_DATABASE_URL"].replace("+psycopg", "")) as connection:
    connection.execute("INSERT INTO fake_workers VALUES (%s, 'image')", [os.getpid()])
print(os.environ["TRIVIUM_EXTRA"], flush=True)
time.sleep(600)
"""


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def fake_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts modules `fake_*` where the stack looks for its services."""
    for name, program in {"migrations": MIGRATIONS, "gateway": GATEWAY, "image": WORKER}.items():
        (tmp_path / f"fake_{name}.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(stack_module, "MIGRATIONS", "fake_migrations")
    services = {"gateway": Service("fake_gateway", scalable=False), "image": Service("fake_image")}
    monkeypatch.setattr(stack_module, "SERVICES", services)


@pytest.fixture
def stack(fake_services: None, tmp_path: Path) -> Iterator[Stack]:
    with Stack(
        tmp_path / "data",
        replicas={"image": 2},
        durable=False,
        environment={"TRIVIUM_EXTRA": "of the caller"},
        backoff=Backoff(initial=0.01),
    ) as running:
        running.wait_ready(20.0)
        running.wait_workers({"image": 2}, 20.0)
        yield running


def test_everything_comes_up_and_is_told_where_the_rest_is(stack: Stack) -> None:
    assert [process.name for process in stack.services.processes] == ["gateway", "image-1", "image-2"]
    assert (stack.folder.path / "logs" / "image-2.log").read_text() == "of the caller\n"
    found = json.loads((stack.folder.path / "stack.json").read_text())
    assert found == {"pid": os.getpid(), "gateway_url": stack.gateway_url, "environment": stack.environment}
    assert (stack.folder.path / "stack.json").stat().st_mode & 0o077 == 0


def test_replicas_come_and_go(stack: Stack) -> None:
    stack.scale("image", 3)
    stack.wait_workers({"image": 3}, 20.0)
    last = stack.services["image-3"]
    stack.scale("image", 1)
    assert [process.name for process in stack.services.processes] == ["gateway", "image-1"]
    assert last.returncode == 0  # asked to end, not killed
    with pytest.raises(StartError, match="1 of image"):
        stack.wait_workers({"image": 2}, 0.1)


def test_a_crashed_worker_is_replaced_and_its_old_row_does_not_count(stack: Stack) -> None:
    worker = stack.services["image-1"]
    before = worker.pid
    os.kill(before, signal.SIGKILL)
    eventually(lambda: worker.pid != before)
    stack.wait_workers({"image": 2}, 20.0)


def test_stop_leaves_nothing_running(fake_services: None, tmp_path: Path) -> None:
    before = descendants()
    with Stack(tmp_path / "data", durable=False, environment={"TRIVIUM_EXTRA": ""}) as stack:
        stack.wait_ready(20.0)
        assert len(descendants() - before) > 8
    assert descendants() == before
    assert not (tmp_path / "data" / "stack.json").exists()


def test_a_failed_migration_stops_the_start_and_is_explained(fake_services: None, tmp_path: Path) -> None:
    (tmp_path / "fake_migrations.py").write_text("raise SystemExit('column is missing')")
    before = descendants()
    with pytest.raises(StartError, match=r"(?s)migrations ended with status 1.*column is missing"):
        Stack(tmp_path / "data", durable=False).start()
    assert descendants() == before


@pytest.mark.parametrize(("service", "count"), [("imagination", 1), ("image", -1), ("gateway", 2)])
def test_impossible_replicas_are_refused(service: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        Stack(tmp_path, replicas={service: count})


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} for gateway is taken"):
            Stack(tmp_path, ports={"gateway": port})
    DataFolder(tmp_path).close()  # the refused one has let go of it
