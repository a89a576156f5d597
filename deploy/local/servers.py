"""The three servers that Trivium stands on, started together on free loopback ports."""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from deploy.local import s3
from deploy.local.folder import DataFolder
from deploy.local.postgres import Postgres
from deploy.local.process import StartError
from deploy.local.redis import Redis
from deploy.local.s3 import S3
from deploy.local.supervisor import Supervisor

_PORT_OFFSETS = {"gateway": (0,), "postgres": (0,), "redis": (0,), "s3": s3.PORT_OFFSETS}


class Servers:
    """Postgres, Redis and S3 in one data folder; one that crashes is started again. Linux only.

    `ports` fixes the port of any of the three, by the names `postgres`, `redis` and `s3` (and of the `gateway`, for
    which one is kept free). `durable=False` makes Postgres faster, for tests. The data folder is locked from here to
    `stop`; raises StartError when another stack runs in it, or a port is taken.
    """

    def __init__(self, data_dir: Path | str, *, ports: Mapping[str, int] | None = None, durable: bool = True) -> None:
        if sys.platform != "linux":
            raise StartError("the embedded stack runs on Linux only; elsewhere use Docker Compose")
        self.folder = DataFolder(Path(data_dir))
        try:
            self._make(ports or {}, durable=durable)
        except BaseException:
            self.folder.close()
            raise
        self._supervisor = Supervisor()

    def _make(self, ports: Mapping[str, int], *, durable: bool) -> None:
        chosen = self.folder.ports(ports, _PORT_OFFSETS)
        secrets = self.folder.secrets()
        self.gateway_port = chosen["gateway"]
        lock = (self.folder.lock_fd,)
        self.postgres = Postgres(
            self.folder.path / "postgres",
            port=chosen["postgres"],
            password=secrets.postgres_password,
            log=self.folder.log("postgres"),
            durable=durable,
            keep_fds=lock,
        )
        self.redis = Redis(
            self.folder.path / "redis",
            port=chosen["redis"],
            password=secrets.redis_password,
            log=self.folder.log("redis"),
            keep_fds=lock,
        )
        self.s3 = S3(
            self.folder.path / "s3",
            port=chosen["s3"],
            access_key=secrets.s3_access_key,
            secret_key=secrets.s3_secret_key,
            log=self.folder.log("s3"),
            keep_fds=lock,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which a service finds the servers."""
        return {
            "TRIVIUM_MODE": "development",
            "TRIVIUM_DATABASE_URL": self.postgres.url(),
            "TRIVIUM_REDIS_URL": self.redis.url(),
            "TRIVIUM_S3_ENDPOINT": self.s3.endpoint,
            "TRIVIUM_S3_ACCESS_KEY": self.s3.access_key,
            "TRIVIUM_S3_SECRET_KEY": self.s3.secret_key,
            "TRIVIUM_S3_BUCKET": s3.BUCKET,
            "TRIVIUM_S3_REGION": s3.REGION,
            "TRIVIUM_DATA_DIR": str(self.folder.path),
        }

    def start(self) -> None:
        """Starts the three at the same time and returns when all can be used. Raises StartError when one cannot."""
        processes = (self.postgres, self.redis, self.s3)
        for process in processes:
            self._supervisor.add(process)
        try:
            with ThreadPoolExecutor(len(processes)) as pool:
                list(pool.map(lambda process: process.start(), processes))
        except BaseException:
            self.stop()
            raise
        self._supervisor.start()

    def stop(self) -> None:
        """Stops the three and gives the data folder back, for good."""
        self._supervisor.stop()
        self.folder.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
