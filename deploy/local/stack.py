"""The whole platform on one machine: the servers, the migrations, then the services, as supervised processes."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from deploy.local.process import Process, StartError
from deploy.local.servers import Servers
from deploy.local.supervisor import Backoff, Supervisor
from shared.errors import InvalidRequestError

DATA_DIR = Path(".trivium")
_HOST = "127.0.0.1"
_ROOT = Path(__file__).resolve().parents[2]
_MIGRATION_SECONDS = 120.0
#: More than a worker takes to drain, whatever hangs in it.
_DRAIN_SECONDS = 40.0


@dataclass(frozen=True)
class Service:
    """How a service is run."""

    module: str
    arguments: tuple[str, ...] = ()
    #: Processes, unless something else is asked for.
    replicas: int = 1
    #: Whether it may run more than once; then its processes are called `<name>-1`, `<name>-2`, ...
    scalable: bool = True


SERVICES = {
    "gateway": Service("services.gateway", scalable=False),
    "dispatcher": Service("services.dispatcher", scalable=False),
    "text": Service("services.text"),
    "image": Service("services.image"),
    "audio": Service("services.audio"),
    "fusion": Service("services.fusion"),
    "finetune": Service("services.finetune"),
    # Only where somebody wants to talk: it takes a few seconds of all cores to start.
    "generate": Service("services.finetune", arguments=("generate",), replicas=0),
}
MIGRATIONS = "shared.migrations"


class Stack:
    """The platform in one data folder, from `start` (or `with`) to `stop`.

    `ports` fixes ports by the names `gateway`, `postgres`, `redis` and `s3`; the others are free ones, kept from run
    to run. `replicas` says how many processes a service gets (1, and none of `generate`; 0 leaves it out).
    `environment` adds settings for the services. The parts: `servers.postgres`, `servers.redis`, `servers.s3`, and
    `services["image-1"]`.
    """

    def __init__(
        self,
        data_dir: Path | str = DATA_DIR,
        *,
        ports: Mapping[str, int] | None = None,
        replicas: Mapping[str, int] | None = None,
        durable: bool = True,
        environment: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._replicas = {name: service.replicas for name, service in SERVICES.items()} | dict(replicas or {})
        for name, count in self._replicas.items():
            _check_count(name, count)
        self.servers = Servers(data_dir, ports=ports, durable=durable)
        self.folder = self.servers.folder
        self.gateway_port = self.servers.gateway_port
        self.services = Supervisor(backoff)
        self._environment = dict(environment or {})

    @staticmethod
    def servers_only(
        data_dir: Path | str = DATA_DIR, *, ports: Mapping[str, int] | None = None, durable: bool = True
    ) -> Servers:
        """Postgres, Redis and S3 without migrations and services, not yet started."""
        return Servers(data_dir, ports=ports, durable=durable)

    @property
    def gateway_url(self) -> str:
        """Where the platform is reached."""
        return f"http://{_HOST}:{self.gateway_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of every service."""
        return {
            **self.servers.environment,
            "TRIVIUM_GATEWAY_URL": self.gateway_url,
            "TRIVIUM_GATEWAY_HOST": _HOST,
            "TRIVIUM_GATEWAY_PORT": str(self.gateway_port),
            **self._environment,
        }

    def start(self) -> None:
        """Starts the servers, migrates the database and starts the services, without waiting for those.

        While the stack runs, `stack.json` in its folder holds `pid`, `gateway_url` and the services' `environment`.
        Raises StartError with the end of the log of what failed.
        """
        self.servers.start()
        try:
            self._process("migrations", Service(MIGRATIONS)).run(_MIGRATION_SECONDS)
            self.services.start()
            for name, count in self._replicas.items():
                self.scale(name, count)
            self.folder.write(
                "stack.json",
                {"pid": os.getpid(), "gateway_url": self.gateway_url, "environment": self.environment},
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drains and stops the services, then the servers. Nothing is left running."""
        (self.folder.path / "stack.json").unlink(missing_ok=True)
        self.services.stop()
        self.servers.stop()

    def scale(self, service: str, count: int) -> None:
        """Brings a service to `count` processes: starts the missing ones, drains and stops those too many."""
        _check_count(service, count)
        wanted = _names(service, count)
        for name in wanted:
            if name not in self.services:
                self.services.add(self._process(name, SERVICES[service])).spawn()
        for process in self.services.processes:
            if _service_of(process.name) == service and process.name not in wanted:
                self.services.remove(process.name)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Returns when the gateway answers `/readyz`. Raises StartError after `timeout` seconds."""
        self.services["gateway"].wait_ready(timeout)

    def wait_workers(self, counts: Mapping[str, int], timeout: float = 120.0) -> None:
        """Returns when this stack has at least `counts[pool]` workers registered in each pool.

        Raises StartError after `timeout` seconds, naming what is missing.
        """
        deadline = time.monotonic() + timeout
        while missing := self._missing_workers(counts):
            if time.monotonic() > deadline:
                waited_for = ", ".join(f"{count} of {pool}" for pool, count in missing.items())
                logs = self.folder.log("*")
                raise StartError(f"workers were still missing after {timeout:g} s: {waited_for}; see {logs}")
            time.sleep(0.1)

    def _missing_workers(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many workers each pool still lacks; rows of an earlier run (other process ids) do not count."""
        try:
            answer = httpx.get(f"{self.gateway_url}/v1/workers", params={"limit": 100}, timeout=5.0, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError:
            return dict(counts)
        ours = {process.pid for process in self.services.processes if process.running}
        registered = [worker["pool"] for worker in answer.json()["data"] if worker["pid"] in ours]
        lacking = {pool: count - registered.count(pool) for pool, count in counts.items()}
        return {pool: count for pool, count in lacking.items() if count > 0}

    def _process(self, name: str, service: Service) -> Process:
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        return Process(
            name,
            [sys.executable, "-m", service.module, *service.arguments],
            log=self.folder.log(name),
            env={**os.environ, **self.environment, "PYTHONPATH": path},
            ready=f"{self.gateway_url}/readyz" if name == "gateway" else None,
            grace=_DRAIN_SECONDS,
            keep_fds=(self.folder.lock_fd,),
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _names(service: str, count: int) -> list[str]:
    """The names of a service's processes."""
    if not SERVICES[service].scalable:
        return [service][:count]
    return [f"{service}-{number}" for number in range(1, count + 1)]


def _service_of(process: str) -> str:
    """The service that a process of this name runs."""
    return process.rpartition("-")[0] or process


def _check_count(service: str, count: int) -> None:
    if service not in SERVICES:
        raise InvalidRequestError(f"there is no service {service}; there are {', '.join(SERVICES)}", param=service)
    if count < 0 or (count > 1 and not SERVICES[service].scalable):
        raise InvalidRequestError(f"{service} cannot run {count} times", param=service)
