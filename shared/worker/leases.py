"""The worker's side of its keeper: which shards are held, and what the keeper says of them."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from shared.jobs.protocol import PROTOCOL
from shared.jobs.records import Lease
from shared.observability import get_logger
from shared.queues import Queue
from shared.version import trivium_version
from shared.worker.control import Control

log = get_logger(__name__)


class HeldLeases:
    """The leases of this worker, renewed by the keeper process. Thread-safe."""

    def __init__(self, worker_id: str, queue: Queue, loaded_models: Callable[[], list[str]]):
        self._row = {
            "id": worker_id, "pool": queue.value, "host": socket.gethostname(), "pid": os.getpid(),
            "version": trivium_version(), "protocol": PROTOCOL,
        }  # fmt: skip
        self._loaded_models = loaded_models
        self._held: dict[int, tuple[Lease, Control]] = {}
        self._lock = threading.Lock()
        self._leaving = self._closed = False
        self._keeper = self._spawn()

    def add(self, lease: Lease) -> Control:
        """Takes a lease into care."""
        control = Control(lease.shard_id)
        with self._lock:
            self._held[lease.shard_id] = (lease, control)
            self._tell()
        return control

    def remove(self, lease: Lease) -> None:
        """The shard has ended or was handed back."""
        with self._lock:
            self._held.pop(lease.shard_id, None)
            self._tell()

    def refresh(self) -> None:
        """Says anew what is loaded."""
        with self._lock:
            self._tell()

    def leave(self) -> None:
        """The worker is leaving: should it end with shards in its hands, the keeper hands them back."""
        with self._lock:
            self._leaving = True
            self._tell()

    def break_off(self) -> None:
        """What is held has to stop at its next batch."""
        with self._lock:
            for _, control in self._held.values():
                control.drain()

    def close(self, seconds: float) -> None:
        """Ends the keeper, which gives up what is still held, and waits for it at most so many seconds."""
        with self._lock:
            self._closed = True
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
        try:
            self._keeper.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("leases not given up yet; if the keeper cannot, they will run out")

    def _tell(self) -> None:
        if self._closed:
            return
        message = {
            "held": [[lease.shard_id, str(lease.token)] for lease, _ in self._held.values()],
            "status": {
                "state": "draining" if self._leaving else "busy" if self._held else "idle",
                "loaded_models": self._loaded_models(),
                "current_shards": [
                    {"job_id": lease.job_id, "stage": lease.stage.value, "shard": lease.index, "items": lease.items}
                    for lease, _ in self._held.values()
                ],
            },
            "leaving": self._leaving,
        }
        line = json.dumps(message) + "\n"
        try:
            self._write(line)
        except OSError:
            log.warning("the keeper died; starting another")
            self._keeper = self._spawn()
            self._write(line)

    def _write(self, line: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(line)
        self._keeper.stdin.flush()

    def _spawn(self) -> "subprocess.Popen[str]":
        keeper = subprocess.Popen(
            [sys.executable, "-m", "shared.worker.keeper", json.dumps(self._row)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(keeper,), name="keeper", daemon=True).start()
        return keeper

    def _listen(self, keeper: "subprocess.Popen[str]") -> None:
        assert keeper.stdout is not None
        for line in keeper.stdout:
            answer: dict[str, Any] = json.loads(line)
            with self._lock:
                for id in answer["lost"]:
                    if id in self._held:
                        self._held[id][1].lose()
                for id in answer["stopped"]:
                    if id in self._held:
                        self._held[id][1].cancel()
