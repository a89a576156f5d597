"""A text worker that hangs where it is told: `python -m tests.integration.hanging start|load|prepare|run|store`.

It hangs as a library would, or a dead connection: deaf to whoever asks it to stop. The file HANGING says that it does.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.jobs.records import Finished, Lease
from shared.queues import Queue, Stage
from shared.worker.context import Handler, WorkerContext
from shared.worker.control import Control
from shared.worker.run import run_worker


class HangingPool:
    """A pool and its handler."""

    def __init__(self, step: str):
        self.handlers: Mapping[Stage, Handler] = {Stage.TEXT: self}
        self.lane = None
        self._step = step
        self._pass("start")

    def load(self, lease: Lease, control: Control) -> None:
        self._pass("load")

    def prepare(self, lease: Lease, control: Control) -> None:
        self._pass("prepare")

    def run(self, lease: Lease, prepared: Any, control: Control) -> None:
        self._pass("run")

    def store(self, lease: Lease, output: Any, control: Control) -> Finished:
        self._pass("store")
        return Finished(lease, None, items_done=lease.items)

    def loaded_models(self) -> list[str]:
        return []

    def close(self) -> None:
        pass

    def _pass(self, step: str) -> None:
        if step == self._step:
            Path(os.environ["HANGING"]).touch()
            time.sleep(600)


def make_pool(context: WorkerContext) -> HangingPool:
    return HangingPool(sys.argv[1])


if __name__ == "__main__":
    run_worker(Queue.TEXT, make_pool)
