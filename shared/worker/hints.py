"""The Celery worker that carries hints to the shard loop: one thread of its process, which nothing waits for.

Celery has a thread of its own, not the main one, so that signals and shutdown are ours: with Redis frozen or away it
may hang for as long as it likes, and work begins and ends without it.
"""

import os
import threading
import warnings
from collections.abc import Callable

from celery.platforms import SecurityWarning

from shared.broker import Broker
from shared.observability import get_logger
from shared.queues import HINT_TASK, Queue

log = get_logger(__name__)


def listen_for_hints(
    app: Broker, queue: Queue, *, name: str, log_level: str, on_hint: Callable[[], None], on_end: Callable[[], None]
) -> None:
    """Starts the thread: `on_hint` for each hint that comes to `queue`; `on_end` if Celery gives up."""

    @app.task(name=HINT_TASK)  # type: ignore[untyped-decorator]
    def hint() -> None:
        on_hint()

    def run() -> None:
        # Celery warns root of pickled messages; ours are JSON, and the embedded stack may well run as root.
        warnings.simplefilter("ignore", SecurityWarning)
        worker = app.Worker(
            hostname=f"{name}@{os.uname().nodename}",
            pool="threads",
            concurrency=1,
            queues=[queue.value],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel=log_level,
            quiet=True,
        )
        try:
            worker.start()
        finally:
            log.error("Celery ended", exit_code=worker.exitcode)
            on_end()

    threading.Thread(target=run, name="hints", daemon=True).start()
