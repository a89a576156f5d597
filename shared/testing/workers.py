"""Workers inside the process of a test: the shard loop with a real pool, without keeper and Celery."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.jobs.records import Lease
from shared.language_models import load_language_models
from shared.queues import Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.worker.context import PoolFactory, WorkerContext
from shared.worker.control import Control
from shared.worker.loop import ShardLoop


class Held:
    """In the place of `HeldLeases`: what is held, without a keeper."""

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}

    def add(self, lease: Lease) -> Control:
        """Takes a lease."""
        self.leases[lease.shard_id] = lease
        return Control(lease.shard_id)

    def remove(self, lease: Lease) -> None:
        """Its end."""
        self.leases.pop(lease.shard_id, None)

    def refresh(self) -> None:
        """Nobody to tell."""

    def leave(self) -> None:
        """Nobody to tell."""


def make_context(settings: Settings, sessions: Sessions, store: ObjectStore, queue: Queue) -> WorkerContext:
    """What a worker of a queue has in its hands."""
    catalog = load_catalog(settings.encoders_file)
    return WorkerContext(
        settings, sessions, store, make_broker(settings), catalog, queue, f"worker-{queue}",
        load_language_models(settings.language_models_file),
    )  # fmt: skip


@contextmanager
def run_pool(context: WorkerContext, make_pool: PoolFactory) -> Iterator[ShardLoop]:
    """A worker's loop, drained at the end."""
    pool = make_pool(context)
    loop = ShardLoop(context, pool, Held())  # type: ignore[arg-type]  # Held is enough of HeldLeases
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        wait_for(lambda: not loop.running, seconds=30, what="the end of the loop")
        pool.close()
