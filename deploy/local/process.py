"""One process of the stack: a command under its init, with a log file and a health check."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from shared.errors import TriviumError

_INIT = Path(__file__).with_name("init.py")
_LOG_BYTES = 16 * 1024**2
_TAIL_BYTES = 16 * 1024


class StartError(TriviumError):
    """A process of the stack did not come up; the message ends with the last lines of its log."""

    code = "start_failed"


class Process:
    """A command that can be started, stopped, killed and started again.

    `ready` says when it can be used: a function, or a URL that answers 200; without one it is ready as soon as it
    runs. `stop_signal` asks it to end; after `grace` seconds it is killed. `cwd` and `env` are the caller's unless
    given. `keep_fds` stay open for as long as anything of the process lives.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Callable[[], bool] | str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace: float = 10.0,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = dict(env) if env is not None else None
        self.cwd = cwd
        self.ready = ready
        self.stop_signal = stop_signal
        self.grace = grace
        self.keep_fds = tuple(keep_fds)
        #: Whether it is meant to run: what a supervisor compares with `running`.
        self.wanted = False
        self.started_at = 0.0
        self._lock = threading.RLock()
        self._init: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The process id of the command itself. Raises StartError when it never ran."""
        if self._pid is None:
            raise StartError(f"{self.name} has not been started")
        return self._pid

    @property
    def running(self) -> bool:
        """Whether the command, or anything it left behind, still runs."""
        return self._init is not None and self._init.poll() is None

    @property
    def crashed(self) -> bool:
        """Whether it has ended although it is meant to run."""
        with self._lock:
            return self.wanted and not self.running

    @property
    def returncode(self) -> int | None:
        """The exit status (128 + n after signal n), None while it runs or before it ran."""
        return self._init.poll() if self._init else None

    def start(self, timeout: float = 30.0) -> None:
        """Starts the command unless it runs, and returns when it is ready.

        Raises StartError when it ends before, or is not ready within `timeout` seconds (it is killed then).
        """
        self.spawn()
        try:
            self.wait_ready(timeout)
        except StartError:
            self.kill()
            raise

    def spawn(self) -> None:
        """Starts the command unless it runs, without waiting for it to be ready."""
        with self._lock:
            self.wanted = True
            self.respawn()

    def respawn(self) -> None:
        """Starts the command again after a crash; nothing happens when it runs, or is not meant to."""
        with self._lock:
            if self.wanted and not self.running:
                self._discard()
                self.prepare()
                self._launch()

    def prepare(self) -> None:
        """What must be done before each start of the command; nothing, unless a subclass says."""

    def healthy(self) -> bool:
        """Whether it can be used right now."""
        if not self.running:
            return False
        if self.ready is None:
            return True
        if callable(self.ready):
            return self.ready()
        try:
            return httpx.get(self.ready, timeout=2.0, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Returns when it is healthy. Raises StartError when it ends first, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self.healthy():
            if not self.running:
                raise StartError(f"{self.name} ended with status {self.returncode} as it started{self._log_tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready within {timeout:g} s{self._log_tail()}")
            time.sleep(0.05)

    def wait(self, timeout: float) -> int:
        """Returns the exit status once the command and all it started are gone. Raises TimeoutError."""
        if self._init is None:
            raise StartError(f"{self.name} has not been started")
        try:
            return self._init.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs after {timeout:g} s") from None

    def run(self, timeout: float) -> None:
        """Runs a command that ends by itself. Raises StartError unless it ends with status 0 within `timeout` s."""
        self.spawn()
        try:
            status = self.wait(timeout)
        except TimeoutError as error:
            self.kill()
            raise StartError(f"{error}{self._log_tail()}") from None
        self.stop()
        if status != 0:
            raise StartError(f"{self.name} ended with status {status}{self._log_tail()}")

    def send_signal(self, signum: int) -> None:
        """Sends a signal to the command, if it runs. SIGKILL looks like a crash: a supervisor starts it again."""
        with self._lock:
            if self._control is not None:
                try:
                    self._control.send(bytes([signum]))
                except OSError:
                    return  # its init has just ended

    def request_stop(self) -> None:
        """Asks it to end, once (to many programs a second signal means "at once"), and no longer wants it to run."""
        with self._lock:
            if self.wanted:
                self.wanted = False
                self.send_signal(self.stop_signal)

    def stop(self, grace: float | None = None) -> None:
        """Asks it to end and waits; kills it after `grace` seconds. Nothing happens when it does not run."""
        self.request_stop()
        try:
            if self._init is not None:
                self.wait(self.grace if grace is None else grace)
        except TimeoutError:
            pass
        self.kill()

    def kill(self) -> None:
        """Kills it and all it started, at once (SIGKILL); it stays down until it is started again."""
        with self._lock:
            self.wanted = False
            self.send_signal(signal.SIGKILL)
            if self._init is not None:
                self._init.wait()
            self._discard()

    def restart(self, timeout: float = 30.0) -> None:
        """Stops it, or takes it as dead as it is, and starts it again."""
        self.stop()
        self.start(timeout)

    def _launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        self._control, theirs = socket.socketpair()
        with theirs, self.log.open("ab") as log:
            self._init = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_INIT), str(theirs.fileno()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env=self.env,
                pass_fds=(theirs.fileno(), *self.keep_fds),
                start_new_session=True,
            )
        self.started_at = time.monotonic()
        with self._control.makefile("rb") as answer:
            line = answer.readline()
        if not line:
            raise StartError(f"{self.name} could not be started{self._log_tail()}")
        self._pid = int(line)

    def _discard(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _log_tail(self, lines: int = 20) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
                tail = log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return ""
        return "".join([f"; the end of {self.log}:\n", *(f"  {line}\n" for line in tail)])
