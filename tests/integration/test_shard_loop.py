"""The shard loop with a handler of the test's own, on a real Postgres."""

import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update

from shared.db import Sessions
from shared.jobs.models import Shard
from shared.jobs.records import Finished, Lease
from shared.jobs.states import ShardState
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import submit, wait_for
from shared.testing.workers import Held, make_context
from shared.worker.context import Handler
from shared.worker.control import Control
from shared.worker.loop import ShardLoop


class Blocking:
    """A pool and its handler: shards run until `go` is set."""

    def __init__(self) -> None:
        self.handlers: Mapping[Stage, Handler] = {Stage.TEXT: self}
        self.lane = None
        self.running, self.go = threading.Event(), threading.Event()

    def load(self, lease: Lease, control: Control) -> None:
        pass

    def prepare(self, lease: Lease, control: Control) -> None:
        pass

    def run(self, lease: Lease, prepared: Any, control: Control) -> None:
        self.running.set()
        assert self.go.wait(30)

    def store(self, lease: Lease, output: Any, control: Control) -> Finished:
        return Finished(lease, None, items_done=lease.items)

    def loaded_models(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


def test_an_isolated_shard_is_held_while_it_waits_to_be_alone(
    settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """It is renewed from its claim on, and handed back at once if the worker leaves before its turn has come."""
    items = [{"id": f"item-{i}", "text": "x"} for i in range(2)]
    id = submit(
        settings, sessions, store, {"items": items, "encoders": {"image": None, "audio": None}, "shard_size": 1}
    )
    with sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id == id, Shard.index == 1).values(isolated=True))
    held, pool = Held(), Blocking()
    context = make_context(settings, sessions, store, Queue.TEXT)
    loop = ShardLoop(context, pool, held)  # type: ignore[arg-type]  # Held is enough of HeldLeases
    loop.start()
    assert pool.running.wait(10)
    wait_for(lambda: len(held.leases) == 2, seconds=10, what="the claim of the isolated shard")
    threading.Timer(1.0, pool.go.set).start()
    loop.stop()
    wait_for(lambda: not loop.running, seconds=20, what="the end of the loop")
    with sessions() as session:
        first, second = session.scalars(
            select(Shard).where(Shard.job_id == id, Shard.stage == "text").order_by(Shard.index)
        )
    assert first.state == ShardState.DONE
    assert (second.state, second.attempts, second.early_deaths) == (ShardState.READY, 0, 0)
    assert held.leases == {}
