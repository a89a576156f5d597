"""The embedded stack under attack: proxies before its servers, services with crash points, its own temporary folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from deploy.local.postgres import Postgres
from deploy.local.process import Process
from deploy.local.redis import Redis
from deploy.local.s3 import S3
from deploy.local.stack import Service, Stack
from deploy.local.supervisor import Backoff
from tests.chaos.proxy import Proxy

DIMENSION = 16
REPLICAS = {"text": 2, "image": 2, "audio": 2, "fusion": 2, "finetune": 2}
#: The same by the names under which the workers of a service register.
_REGISTERED = {{"finetune": "fine_tune"}.get(name, name): count for name, count in REPLICAS.items()}
#: Small file systems of their own, where they can be mounted: who writes there, where, and their bytes.
DISKS = {
    "postgres, redis and logs": ("data", 1536 * 1024**2),
    "s3": ("data/s3", 1536 * 1024**2),
    "temporary files": ("tmp", 256 * 1024**2),
}
_MODEL_SECONDS = "0.05"
_EPOCH_SECONDS = "0.12"
#: Small, so that the feature cache serves some of the work and is evicted all the time.
_CACHE_BYTES = "20000"


class ChaosStack(Stack):
    """A stack whose services reach its servers through proxies (`proxies["postgres"]`) and pass crash points.

    The folder must exist; the workers' temporary files go to `folder / "tmp"`, crash points are armed in
    `folder / "points"`.
    """

    def __init__(self, folder: Path):
        self.points, self.temporary = folder / "points", folder / "tmp"
        self.points.mkdir()
        mounted = {name: mount_disk(folder / place, size) for name, (place, size) in DISKS.items()}
        self.disks = {name: disk for name, disk in mounted.items() if disk is not None}
        encoders = folder / "encoders.json"
        encoders.write_text(json.dumps(_encoders()))
        self.proxies: dict[str, Proxy] = {}
        super().__init__(
            folder / "data",
            replicas=REPLICAS,
            environment={
                "TRIVIUM_ENCODERS_FILE": str(encoders),
                "TRIVIUM_CACHE_BYTES": _CACHE_BYTES,
                "TRIVIUM_DECODE_SECONDS": "10",
                "TMPDIR": str(self.temporary),
                "CHAOS_POINTS": str(self.points),
                "TRIVIUM_TORCH_THREADS": "1",  # a sum in another order would be another sum
                "CHAOS_MODEL_SECONDS": _MODEL_SECONDS,
                "CHAOS_EPOCH_SECONDS": _EPOCH_SECONDS,
            },
            backoff=Backoff(initial=0.5, factor=1.5, maximum=3.0),
        )
        servers: dict[str, Postgres | Redis | S3] = {
            "postgres": self.servers.postgres,
            "redis": self.servers.redis,
            "s3": self.servers.s3,
        }
        self.proxies = {name: Proxy(server.port) for name, server in servers.items()}
        self._ports = {server.port: self.proxies[name].port for name, server in servers.items()}

    @property
    def environment(self) -> dict[str, str]:
        """The services' settings, with the proxies in the servers' places."""
        return {name: self._through_proxies(value) for name, value in super().environment.items()}

    def stop(self) -> None:
        """Stops everything."""
        super().stop()
        for proxy in self.proxies.values():
            proxy.close()

    def release_disks(self, logs: Path) -> None:
        """Unmounts the disks, once nothing needs what is on them but the logs, which go to the folder `logs`."""
        written = self.folder.log("*").parent
        if written.exists():
            shutil.copytree(written, logs)
        for disk in reversed(self.disks.values()):
            subprocess.run(["umount", "-l", disk], check=False)

    def wait_all_workers(self) -> None:
        """Returns when every pool has all its workers. Raises StartError after two minutes."""
        self.wait_workers(_REGISTERED)

    def workers(self, pool: str | None = None) -> list[Process]:
        """The worker processes of the pools, or of one."""
        return [p for p in self.services.processes if _is_worker(p.name) and (not pool or p.name.startswith(pool))]

    def _through_proxies(self, value: str) -> str:
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda m: str(self._ports.get(int(m[0]), m[0])), value)

    def _process(self, name: str, service: Service) -> Process:
        process = super()._process(name, service)
        if service.module.startswith("services."):
            process.command = [sys.executable, "-m", "tests.chaos.points", service.module, *service.arguments]
        return process


def mount_disk(place: Path, size: int) -> Path | None:
    """A small file system of its own at `place`; None where this user may not mount one."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return place if os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0 else None


def keeper_of(pid: int) -> int | None:
    """The process id of a worker's keeper."""
    try:
        for child in psutil.Process(pid).children():
            if "shared.worker.keeper" in child.cmdline():
                return child.pid
    except psutil.Error:
        pass
    return None


def send(pid: int | None, signum: signal.Signals) -> bool:
    """Sends a signal to a process; False when it is gone."""
    try:
        os.kill(pid or 0, signum) if pid else None
    except ProcessLookupError:
        return False
    return pid is not None


def processes_in(folder: Path) -> list[psutil.Process]:
    """Everything that runs in a stack's folder, by its environment or command line."""
    mark, found = str(folder), []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(mark in word for word in words):
            found.append(process)
    return found


def _is_worker(name: str) -> bool:
    return name.rpartition("-")[0] in REPLICAS


def _encoders() -> list[dict[str, object]]:
    hashing: list[dict[str, object]] = [
        {"id": f"hash-{modality}", "modality": modality, "dimension": DIMENSION, "loader": "hashing"}
        for modality in ("text", "image", "audio")
    ]
    fitted = {"id": "small-word2vec", "modality": "text", "dimension": 8, "loader": "word2vec", "fitted": True}
    return [*hashing, fitted]
