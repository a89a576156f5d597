"""The supervisor of the embedded stack, with small commands in place of services."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.ports import free_port
from deploy.local.process import Process, StartError
from deploy.local.supervisor import Backoff, Supervisor
from shared.errors import NotFoundError

SLEEP = "import time; time.sleep(600)"
POLITE = """
import signal, sys, time
def bye(*_):
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("up", flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
# Leaves a child, and a daemon that has left its session and its parent.
WITH_CHILDREN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("up", child.pid, os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""

Make = Callable[..., Process]


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes processes of Python programs, ready once they have printed `up`; kills them after the test."""
    made: list[Process] = []

    def factory(name: str, program: str, **options: object) -> Process:
        log = tmp_path / f"{name}.log"
        options.setdefault("ready", lambda: "up" in log.read_text())
        made.append(Process(name, [sys.executable, "-c", program], log=log, **options))  # type: ignore[arg-type]
        return made[-1]

    yield factory
    for process in made:
        process.kill()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(Backoff(initial=0.01, maximum=0.05)) as running:
        yield running


def test_start_returns_when_a_url_answers(make: Make) -> None:
    port = free_port()
    server = make("web", "", ready=f"http://127.0.0.1:{port}/")
    server.command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    assert not server.healthy()
    server.start()
    assert server.healthy()
    server.stop()
    assert not server.healthy()


def test_a_process_that_ends_as_it_starts_is_reported_with_its_log(make: Make) -> None:
    process = make("broken", "import sys; sys.exit('no such thing as a free lunch')")
    with pytest.raises(StartError, match=r"(?s)broken ended with status 1.*no such thing as a free lunch"):
        process.start()
    assert not process.wanted


def test_a_missing_command_is_reported(make: Make) -> None:
    process = make("absent", "")
    process.command = ["/no/such/command"]
    with pytest.raises(StartError, match="status 127"):
        process.start()


def test_a_process_that_never_becomes_ready_is_killed(make: Make) -> None:
    process = make("slow", SLEEP, ready=lambda: False)
    with pytest.raises(StartError, match="not ready within"):
        process.start(timeout=0.2)
    assert not alive(process.pid)


def test_run_waits_for_the_end(make: Make) -> None:
    make("good", "print('done')").run(timeout=20.0)
    with pytest.raises(StartError, match="status 3"):
        make("bad", "raise SystemExit(3)").run(timeout=20.0)
    with pytest.raises(StartError, match="still runs"):
        make("long", SLEEP).run(timeout=0.2)


def test_stop_is_graceful(make: Make) -> None:
    process = make("polite", POLITE)
    process.start()
    process.stop()
    assert process.returncode == 0
    assert process.log.read_text().count("bye") == 1


def test_stop_kills_after_the_grace(make: Make) -> None:
    process = make("stubborn", STUBBORN, grace=0.1)
    process.start()
    process.stop()
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("end", ["stop", "kill", "crash"])
def test_children_and_daemons_go_with_their_process(make: Make, end: str) -> None:
    process = make("parent", WITH_CHILDREN)
    process.start()
    left_behind = [int(pid) for pid in process.log.read_text().split()[1:]]
    assert all(alive(pid) for pid in left_behind)
    if end == "crash":
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20.0)
    else:
        getattr(process, end)()
    assert not any(alive(pid) for pid in left_behind)


def test_a_process_outlives_the_thread_that_started_it(make: Make) -> None:
    process = make("polite", POLITE)
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    with pytest.raises(TimeoutError):
        process.wait(timeout=0.5)


def test_a_crashed_process_is_started_again(make: Make, supervisor: Supervisor) -> None:
    process = supervisor.add(make("polite", POLITE))
    process.start()
    for _ in range(3):
        crashed = process.pid
        process.send_signal(signal.SIGKILL)
        eventually(lambda before=crashed: process.running and process.pid != before)
    assert supervisor["polite"] is process


def test_a_process_that_was_killed_on_purpose_stays_down_until_started(make: Make, supervisor: Supervisor) -> None:
    killed, stopped, crashed = (supervisor.add(make(name, POLITE)) for name in ("killed", "stopped", "crashed"))
    for process in supervisor.processes:
        process.start()
    killed.kill()
    stopped.stop()
    before = crashed.pid
    crashed.send_signal(signal.SIGKILL)
    eventually(lambda: crashed.running and crashed.pid != before)  # so the supervisor has looked at all three
    assert not killed.running
    assert not stopped.running
    killed.start()
    assert killed.healthy()


def test_processes_come_and_go_while_it_runs(make: Make, supervisor: Supervisor) -> None:
    first, second = (supervisor.add(make(f"image-{number}", POLITE)) for number in (1, 2))
    first.start()
    second.start()
    with pytest.raises(StartError, match="already"):
        supervisor.add(make("image-1", POLITE))
    supervisor.remove("image-2")
    assert [process.name for process in supervisor.processes] == ["image-1"]
    assert first.running
    assert not second.running
    with pytest.raises(NotFoundError):
        supervisor["image-2"]


def test_stop_ends_all_and_asks_each_once(make: Make, supervisor: Supervisor) -> None:
    polite = [supervisor.add(make(f"polite-{number}", POLITE)) for number in range(3)]
    stubborn = supervisor.add(make("stubborn", STUBBORN, grace=0.5))
    for process in supervisor.processes:
        process.start()
    supervisor.stop()
    assert not any(process.running for process in [*polite, stubborn])
    assert all(process.log.read_text().count("bye") == 1 for process in polite)


def test_waits_grow_to_their_maximum() -> None:
    backoff = Backoff(initial=0.5, factor=2.0, maximum=3.0)
    assert [backoff.delay(crashes) for crashes in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_process_that_keeps_crashing_is_started_ever_more_rarely(make: Make) -> None:
    with Supervisor(Backoff(initial=0.01, factor=1e6, maximum=3600.0)) as supervisor:
        other = supervisor.add(make("other", POLITE))
        crashing = supervisor.add(make("crashing", "print('again', flush=True)"))
        crashing.spawn()
        eventually(lambda: crashing.log.read_text().count("again") == 2 and crashing.crashed)
        other.start()
        before = other.pid
        other.send_signal(signal.SIGKILL)
        eventually(lambda: other.running and other.pid != before)
        assert crashing.log.read_text().count("again") == 2


HOLD = """
import sys
from pathlib import Path
from deploy.local.process import Process
from deploy.local.supervisor import Supervisor

supervisor = Supervisor()
supervisor.start()
for name, program in zip(("parent", "stubborn"), sys.argv[2:], strict=True):
    log = Path(sys.argv[1], f"{name}.log")
    process = Process(name, [sys.executable, "-c", program], log=log, ready=lambda log=log: "up" in log.read_text())
    supervisor.add(process).start()
print("ready", flush=True)
sys.stdin.read()
"""


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), WITH_CHILDREN, STUBBORN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        descendants = psutil.Process(holder.pid).children(recursive=True)
        child_and_daemon = {int(pid) for pid in (tmp_path / "parent.log").read_text().split()[1:]}
        assert child_and_daemon < {process.pid for process in descendants}
        holder.kill()
        _, left = psutil.wait_procs(descendants, timeout=10.0)
    assert left == []
