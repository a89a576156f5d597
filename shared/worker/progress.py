"""Training's way to the outside: signals to stop, events of the job, checkpoints in object storage."""

import time
from itertools import count
from typing import Any, Protocol

from shared.errors import TriviumError
from shared.jobs import engine
from shared.jobs.records import Lease
from shared.observability import get_logger
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control, is_away
from shared.worker.slices import read_verified

log = get_logger(__name__)

#: Events of a kind that comes often are written this many seconds apart; the last one is never lost.
EVENT_SECONDS = 1.0
_OFTEN = frozenset({"batch", "epoch", "trial"})


class Progress(Protocol):
    """The outside of a training run: signals to stop, events, checkpoints."""

    def check(self) -> None:
        """Raises what should stop the run. Called at least once a batch."""
        ...

    def report(self, kind: str, **facts: Any) -> None:
        """Something happened: `split`, `dry_run`, `warning`, `batch`, `epoch`, `trial`, `model`, `step`, each with
        small JSON facts."""
        ...

    def is_due(self) -> bool:
        """Whether the last checkpoint is so old that it is time for another."""
        ...

    def save(self, name: str, state: bytes) -> None:
        """Keeps a checkpoint under `name`, instead of the one before."""
        ...

    def restore(self, name: str) -> bytes | None:
        """What was saved last under `name`, by this run or by one that was stopped; None if nothing was."""
        ...


class Silence:
    """Nobody listens, nothing is kept."""

    def check(self) -> None:
        """Never stops."""

    def report(self, kind: str, **facts: Any) -> None:
        """Forgets."""

    def is_due(self) -> bool:
        """Never."""
        return False

    def save(self, name: str, state: bytes) -> None:
        """Forgets."""

    def restore(self, name: str) -> bytes | None:  # noqa: ARG002
        """Nothing."""
        return None


class JobProgress:
    """The progress of one lease."""

    def __init__(self, context: WorkerContext, lease: Lease, control: Control):
        self._context, self._lease, self._control = context, lease, control
        self._checkpoints = dict(lease.checkpoints)
        self._saves, self._saved = count(), time.monotonic()
        self._written: dict[str, float] = {}
        self._held_back: dict[str, dict[str, Any]] = {}

    def check(self) -> None:
        """Raises what stops training: ShardCancelledError, LeaseLostError or DrainedError."""
        self._control.check()

    def report(self, kind: str, **facts: Any) -> None:
        """Logs, and writes the event `training.KIND`; of frequent ones only some."""
        log.info("training", kind=kind, **facts)
        if kind in _OFTEN and time.monotonic() - self._written.get(kind, 0.0) < EVENT_SECONDS:
            self._held_back[kind] = facts
            return
        self._held_back.pop(kind, None)
        self._write(kind, facts)

    def flush(self) -> None:
        """Writes the last events that were held back."""
        for kind, facts in self._held_back.items():
            self._write(kind, facts)
        self._held_back.clear()

    def is_due(self) -> bool:
        """After `checkpoint_seconds` without one."""
        return time.monotonic() - self._saved >= self._context.settings.worker.checkpoint_seconds

    def save(self, name: str, state: bytes) -> None:
        """Object first, row last; the object before it is of no more use."""
        lease = self._lease
        key = keys.checkpoint(lease.job_id, lease.stage, lease.token, name, next(self._saves))
        store = self._context.store
        stored = self._control.patiently(lambda: store.put(key, state, "application/octet-stream"))

        def note() -> None:
            with self._context.sessions.begin() as session:
                engine.checkpoint(session, lease, name, stored)

        self._control.patiently(note)
        before = self._checkpoints.get(name)
        self._checkpoints[name] = {"key": stored.key, "sha256": stored.sha256}
        if before is not None:
            self._discard(before["key"])
        self._saved = time.monotonic()

    def restore(self, name: str) -> bytes | None:
        """What was saved last under this name, in this attempt or an earlier one; None if there is nothing."""
        saved = self._checkpoints.get(name)
        if saved is None:
            return None
        return self._control.patiently(lambda: read_verified(self._context.store, saved["key"], saved["sha256"]))

    def _discard(self, key: str) -> None:
        try:
            self._context.store.delete([key])
        except TriviumError as error:
            log.warning("an old checkpoint stays until the sweep finds it", error=error.message)

    def _write(self, kind: str, facts: dict[str, Any]) -> None:
        """An event is worth no waiting: during an outage it is left out."""
        self._written[kind] = time.monotonic()
        try:
            with self._context.sessions.begin() as session:
                engine.report(session, self._lease, f"training.{kind}", {"stage": self._lease.stage.value, **facts})
        except Exception as error:
            if not is_away(error):
                raise
            log.warning("an event was left out", error=str(error)[:300])
