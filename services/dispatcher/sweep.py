"""The sweep: what has to be looked after all the time, whatever happens to those who should have done it.

Two threads, so that slow object storage cannot hold up the rescue of a dead worker's shards. A step that fails, in an
outage or otherwise, is logged and runs again when it is next due; nothing that it raises ends the process.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.dispatcher.metrics import Metrics
from services.dispatcher.steps import batches, cache, deletion, publish, rescue
from services.dispatcher.steps.context import Run, SweepContext
from services.dispatcher.steps.orphans import OrphanSearch
from shared.observability import get_logger
from shared.worker.control import is_away

log = get_logger(__name__)

MINUTE = timedelta(minutes=1)


@dataclass
class Step:
    """A step, how often it runs (at every tick unless told otherwise), and when it is next due."""

    name: str
    run: Run
    every: timedelta = timedelta(0)
    due: datetime | None = None


def urgent_steps() -> list[Step]:
    """What people wait for; these touch Postgres and Redis only."""
    return [
        Step("rescue", rescue.rescue),
        Step("end_overdue", rescue.end_overdue),
        Step("hint", rescue.hint),
        Step("warn", rescue.warn, MINUTE / 4),
    ]


def housekeeping_steps() -> list[Step]:
    """What may take its time."""
    return [
        Step("publish", publish.publish),
        Step("batches", batches.finish),
        Step("delete_jobs", deletion.delete_jobs),
        Step("orphans", OrphanSearch()),
        Step("evict", cache.evict, MINUTE / 4),
        Step("retain_jobs", deletion.retain_jobs, MINUTE),
        Step("retain_files", deletion.retain_files, MINUTE),
        Step("forget_workers", deletion.forget_workers, MINUTE),
    ]


def tick(context: SweepContext, steps: Sequence[Step], now: datetime, metrics: Metrics) -> dict[str, int]:
    """Runs the steps that are due. Returns what each did; those that failed are left out."""
    done: dict[str, int] = {}
    for step in steps:
        if step.due is not None and now < step.due:
            continue
        step.due = now + step.every
        try:
            done[step.name] = step.run(context, now)
        except Exception as error:
            metrics.fail(step.name)
            if is_away(error):
                log.warning("the sweep waits out an outage", step=step.name, error=str(error)[:300])
            else:
                log.exception("a step of the sweep failed", step=step.name)
        else:
            metrics.count(step.name, done[step.name])
    return done


class Sweep:
    """The threads that sweep until they are stopped."""

    def __init__(self, context: SweepContext, metrics: Metrics):
        self._context, self._metrics = context, metrics
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(steps,), name=name, daemon=True)
            for name, steps in (("sweep", urgent_steps()), ("housekeeping", housekeeping_steps()))
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 1.0) -> None:
        """Lets the steps that run end, each up to so many seconds: they may be broken off without harm."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(seconds)

    def _run(self, steps: Sequence[Step]) -> None:
        while not self._stopping.is_set():
            tick(self._context, steps, datetime.now(UTC), self._metrics)
            self._stopping.wait(self._context.settings.engine.sweep_seconds)
