"""One of the processes that train together: `python -m shared.ml.rank`, started by shared.ml.distributed."""

import importlib
import json
import os
import select
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import JobError
from shared.ml.device import configure_threads
from shared.ml.process_group import ProcessGroup, join
from shared.observability import configure_logging, get_logger
from shared.worker.progress import Progress

log = get_logger(__name__)


class Worker:
    """The worker that started this process, at the other end of a socket."""

    def __init__(self, descriptor: int):
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("rb")
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def ask(self, question: str, **facts: Any) -> Any:
        """The worker's answer, as JSON; waits for it."""
        self._send({"ask": question, "facts": facts})
        return json.loads(self._lines.readline())

    def tell_failure(self, error: Exception) -> None:
        """Why this process ends."""
        message = error.message if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
        code, param = (error.error_code, error.param) if isinstance(error, JobError) else (None, None)
        self._send({"message": message, "code": code, "param": param})

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _end_with_it(self) -> None:
        """Without the worker nobody wants what is computed here."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        poll.poll()
        os._exit(1)


class RankProgress:
    """The `Progress` of a process: the first speaks for all. What stops the run ends the process."""

    def __init__(self, worker: Worker, rank: int, folder: Path):
        self._worker, self._speaks, self._folder = worker, rank == 0, folder

    def check(self) -> None:
        """Nothing to see: the worker looks."""

    def report(self, kind: str, **facts: Any) -> None:
        """See Progress."""
        if self._speaks:
            self._worker.ask("report", kind=kind, facts=facts)

    def is_due(self) -> bool:
        """See Progress."""
        return self._speaks and bool(self._worker.ask("is_due"))

    def save(self, name: str, state: bytes) -> None:
        """See Progress."""
        if self._speaks:
            (self._folder / "checkpoint").write_bytes(state)
            self._worker.ask("save", name=name, file="checkpoint")

    def restore(self, name: str) -> bytes | None:
        """See Progress; every process gets it."""
        file = self._worker.ask("restore", name=name)
        return None if file is None else (self._folder / file).read_bytes()


@dataclass(frozen=True)
class Rank:
    """What the function of a process gets: its group, the worker, and the folder that all of them share."""

    group: ProcessGroup
    worker: Worker
    progress: Progress
    folder: Path


def main() -> None:
    """`python -m shared.ml.rank OPTIONS_JSON`."""
    options = json.loads(sys.argv[1])
    configure_logging(f"rank-{options['rank']}", options["log_level"])
    worker, folder, rank = Worker(options["socket"]), Path(options["folder"]), options["rank"]
    try:
        configure_threads(options["threads"])
        module, _, name = options["target"].partition(":")
        function = getattr(importlib.import_module(module), name)
        with join(rank, options["world_size"], folder / "meeting", cpu=options["cpu"]) as group:
            function(Rank(group, worker, RankProgress(worker, rank, folder), folder))
    except Exception as error:
        log.exception("training failed in this process")
        worker.tell_failure(error)
        sys.stderr.flush()
        os._exit(1)  # threads of the group may wait for the others


if __name__ == "__main__":
    main()
