"""The data folder of a stack: its lock, its secrets, and the ports it keeps from run to run."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.local.ports import free_port, is_free
from deploy.local.process import StartError

#: How long to wait for a lock whose supervisor was killed: the last process of its stack lets go of it.
_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Secrets:
    """The passwords and keys of one stack."""

    postgres_password: str
    redis_password: str
    s3_access_key: str
    s3_secret_key: str


class DataFolder:
    """A folder that one stack at a time works in; nobody but its owner may enter it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock_fd = self._lock()

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self.path / "logs" / f"{name}.log"

    def secrets(self) -> Secrets:
        """The folder's secrets, made on first use."""
        file = self.path / "secrets.json"
        if not file.exists():
            made = Secrets(
                postgres_password=secrets.token_urlsafe(24),
                redis_password=secrets.token_urlsafe(24),
                s3_access_key=secrets.token_hex(10),
                s3_secret_key=secrets.token_urlsafe(30),
            )
            self.write("secrets.json", asdict(made))
        return Secrets(**json.loads(file.read_text()))

    def ports(self, wanted: Mapping[str, int], offsets: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """A port for each name in `offsets`: the wanted one, or else the last run's if it is free, or else a new one.

        `offsets` says which ports must be free, counted from the one that is returned. Raises StartError when a
        wanted one is taken.
        """
        file = self.path / "ports.json"
        last: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        ports = {}
        for name, needed in offsets.items():
            candidate = wanted.get(name, last.get(name))
            if candidate is None or not all(is_free(candidate + offset) for offset in needed):
                if name in wanted:
                    raise StartError(f"port {candidate} for {name} is taken")
                candidate = free_port(needed)
            ports[name] = candidate
        self.write("ports.json", {**last, **ports})
        return ports

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file that only the owner can read, in one step."""
        unfinished = self.path / f"{name}.unfinished"
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        unfinished.replace(self.path / name)

    def close(self) -> None:
        """Gives the folder back (processes that hold the lock too keep it until they end)."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def _lock(self) -> int:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode()
                if _is_alive(holder) or time.monotonic() > deadline:
                    os.close(fd)
                    raise StartError(f"another stack (process {holder}) runs in {self.path}") from None
                time.sleep(0.05)
            else:
                os.truncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
                return fd


def _is_alive(pid: str) -> bool:
    return pid.isdecimal() and Path(f"/proc/{pid}").exists()
