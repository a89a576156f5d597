"""Keeps a group of processes running: starts crashed ones again, stops all of them together."""

import threading
import time
from dataclasses import dataclass
from typing import Self

from deploy.local.process import Process, StartError
from shared.errors import NotFoundError
from shared.observability import get_logger

log = get_logger(__name__)

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a crashed process is started again, in seconds.

    The first wait is `initial`; each crash within `reset_after` of the start before it makes it `factor` times
    longer, up to `maximum`.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    reset_after: float = 10.0

    def delay(self, crashes: int) -> float:
        """The wait after `crashes` crashes in a row (at least one)."""
        return float(min(self.maximum, self.initial * self.factor ** (crashes - 1)))


@dataclass
class _Crashes:
    """What one process did of late."""

    in_a_row: int = 0
    restart_at: float | None = None


class Supervisor:
    """Watches its processes from a thread of its own, from `start` to `stop`.

    A process that ends although it is wanted is started again after a wait; one that was stopped or killed
    through its own `stop` or `kill` stays down.
    """

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._processes: dict[str, Process] = {}
        self._crashes: dict[str, _Crashes] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def processes(self) -> list[Process]:
        """Its processes, in the order in which they were added."""
        return list(self._processes.values())

    def __getitem__(self, name: str) -> Process:
        try:
            return self._processes[name]
        except KeyError:
            raise NotFoundError(f"no process is called {name}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    def add(self, process: Process) -> Process:
        """Looks after a process from now on; the caller starts it."""
        if process.name in self._processes:
            raise StartError(f"there is a process {process.name} already")
        self._crashes[process.name] = _Crashes()
        self._processes[process.name] = process
        return process

    def remove(self, name: str) -> None:
        """Stops a process and forgets it."""
        self[name].stop()
        del self._processes[name]

    def start(self) -> None:
        """Begins to watch."""
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Asks all processes to end, the last added first, waits for each as long as its grace, and forgets them."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        newest_first = self.processes[::-1]
        for process in newest_first:
            process.request_stop()
        asked_at = time.monotonic()
        for process in newest_first:
            process.stop(grace=max(0.0, asked_at + process.grace - time.monotonic()))
        self._processes.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            for process in self.processes:
                if process.crashed:
                    self._revive(process)
                else:
                    self._crashes[process.name].restart_at = None

    def _revive(self, process: Process) -> None:
        """Starts a crashed process again when its time has come; sets that time when the crash is news."""
        crashes = self._crashes[process.name]
        now = time.monotonic()
        if crashes.restart_at is None:
            lived_long = now - process.started_at > self._backoff.reset_after
            crashes.in_a_row = 1 if lived_long else crashes.in_a_row + 1
            delay = self._backoff.delay(crashes.in_a_row)
            crashes.restart_at = now + delay
            log.warning("process_crashed", process=process.name, status=process.returncode, restart_in=delay)
        elif now >= crashes.restart_at:
            crashes.restart_at = None
            try:
                process.respawn()
            except (StartError, OSError) as error:
                log.warning("process_not_restarted", process=process.name, error=str(error))
