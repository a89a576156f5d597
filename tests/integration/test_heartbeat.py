"""The file by which a container's health check knows that its worker is heard."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def test_a_worker_touches_its_heartbeat_file_again_and_again(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    settings = {**environment, "TRIVIUM_HEARTBEAT_FILE": str(file), "TRIVIUM_RENEW_SECONDS": "0.1"}
    command = [sys.executable, "-m", "services.fusion"]
    with subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL) as worker:
        try:
            wait_until(file.exists, worker)
            os.utime(file, (0, 0))
            wait_until(lambda: file.stat().st_mtime > 0, worker)
        finally:
            worker.terminate()


def wait_until(holds: Callable[[], bool], worker: "subprocess.Popen[bytes]") -> None:
    """Returns when `holds`; fails when the worker ends, or after a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert worker.poll() is None, "the worker ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
