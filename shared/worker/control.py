"""How a shard that runs learns that it should stop, and how it waits out an outage."""

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from shared.db import is_outage
from shared.errors import LeaseLostError, ShardCancelledError, StorageFullError, TriviumError, UnavailableError
from shared.observability import get_logger

log = get_logger(__name__)

T = TypeVar("T")

#: Pauses between tries during an outage grow to this many seconds.
LONGEST_PAUSE = 5.0


class DrainedError(TriviumError):
    """The worker is to leave and its time is up: hand the shard back."""

    code = "drained"


class Control:
    """One shard's stop signals, set from other threads and checked between batches; and what goes between these."""

    def __init__(self, shard_id: int):
        self.shard_id = shard_id
        self._stop: type[TriviumError] | None = None
        self._wake = threading.Event()
        #: What goes between two batches of the model; says whether somebody waits for more of it. Set by the loop.
        self.between: Callable[[], bool] = lambda: False

    def stop(self, reason: type[TriviumError]) -> None:
        """Makes the next `check()` raise `reason`; the first reason given stays."""
        self._stop = self._stop or reason
        self._wake.set()

    def cancel(self) -> None:
        """The job is being cancelled or has ended."""
        self.stop(ShardCancelledError)

    def lose(self) -> None:
        """The lease is gone."""
        self.stop(LeaseLostError)

    def drain(self) -> None:
        """The worker has to leave."""
        self.stop(DrainedError)

    def check(self) -> None:
        """Raises what was asked for: ShardCancelledError, LeaseLostError or DrainedError."""
        if self._stop is not None:
            raise self._stop(f"Shard {self.shard_id} is to stop.")

    def breathe(self) -> bool:
        """Between two batches, on the model thread: checks, then lets interactive requests go first.

        True while somebody waits for answers: the next batch should be short.
        """
        self.check()
        return self.between()

    def patiently(self, action: Callable[[], T]) -> T:
        """Runs `action` until it succeeds, waiting out outages of Postgres and S3: they are nobody's fault."""
        pause = 0.2
        while True:
            self.check()
            try:
                return action()
            except Exception as error:
                if not is_away(error):
                    raise
                log.warning("waiting out an outage", shard=self.shard_id, error=str(error)[:300])
            self._wake.wait(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, LONGEST_PAUSE)


def is_away(error: BaseException) -> bool:
    """True for outages of the servers that Trivium stands on; a full disk is one."""
    return isinstance(error, UnavailableError | StorageFullError) or is_outage(error)
