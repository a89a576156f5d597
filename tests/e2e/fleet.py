"""Services of two releases side by side: single processes, each from the source tree of its release."""

import json
import os
import re
import sys
from pathlib import Path

from sqlalchemy import select

from deploy.local.process import Process
from deploy.local.servers import Servers
from shared.db import Sessions
from shared.jobs.models import Worker
from shared.testing.jobs import wait_for

#: A batch takes a model about this long, so that a drain finds workers at work.
_MODEL_SECONDS = "0.2"


class Fleet:
    """Processes by name. All of them share the servers, their settings, and the gateway's port."""

    def __init__(self, servers: Servers, folder: Path):
        encoders: list[dict[str, object]] = [
            {"id": f"hash-{modality}", "modality": modality, "dimension": 16, "loader": "hashing"}
            for modality in ("text", "image", "audio")
        ]
        encoders.append(
            {"id": "small-word2vec", "modality": "text", "dimension": 8, "loader": "word2vec", "fitted": True}
        )
        (folder / "encoders.json").write_text(json.dumps(encoders))
        self._folder = folder
        self.url = f"http://127.0.0.1:{servers.gateway_port}"
        self.environment = {
            **servers.environment,
            "TRIVIUM_GATEWAY_PORT": str(servers.gateway_port),
            "TRIVIUM_ENCODERS_FILE": str(folder / "encoders.json"),
            "TRIVIUM_CACHE_BYTES": "0",
            "CHAOS_POINTS": str(folder),
            "CHAOS_MODEL_SECONDS": _MODEL_SECONDS,
        }
        self.processes: dict[str, Process] = {}

    def migrate(self, tree: Path) -> None:
        """Runs the migrations of a release."""
        self._process("migrations", tree, "shared.migrations").run(60)

    def start(self, service: str, tree: Path, release: str) -> str:
        """Starts a service of a release, without waiting for it. Returns its name."""
        name = f"{service}-{release}"
        self.processes[name] = self._process(name, tree, "tests.chaos.points", f"services.{service}")
        self.processes[name].spawn()
        return name

    def stop(self, name: str) -> int | None:
        """SIGTERM, and the time to drain. Returns the exit status."""
        self.processes[name].stop()
        return self.processes[name].returncode

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.request_stop()
        for process in self.processes.values():
            process.stop()

    def wait_registered(self, sessions: Sessions, *names: str) -> dict[str, str]:
        """Waits until these workers are known to Postgres. Returns their ids by name."""

        def registered() -> dict[str, str] | None:
            with sessions() as session:
                ids = dict(session.execute(select(Worker.pid, Worker.id)).all())
            found = {name: ids[self.processes[name].pid] for name in names if self.processes[name].pid in ids}
            return found if len(found) == len(names) else None

        return wait_for(registered, what=", ".join(names))

    def handed_back(self) -> int:
        """Shards that workers handed back as they left, so their logs say."""
        logs = (process.log.read_text(errors="replace") for process in self.processes.values())
        return sum(len(re.findall(r'"reason": "drained"', log)) for log in logs)

    def _process(self, name: str, tree: Path, *module: str) -> Process:
        return Process(
            name,
            [sys.executable, "-m", *module],
            log=self._folder / "logs" / f"{name}.log",
            env={**os.environ, **self.environment, "PYTHONPATH": str(tree)},
            cwd=tree,
            ready=f"{self.url}/readyz" if name.startswith("gateway") else None,
            grace=40,
        )
