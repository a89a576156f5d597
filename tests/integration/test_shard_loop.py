"""The shard loop with a handler of the test's own, on a real Postgres."""

import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select, update

from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.jobs.models import Job, Shard
from shared.jobs.records import Finished, Lease
from shared.jobs.states import ShardState
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import submit, wait_for
from shared.testing.leases import HeldLeases
from shared.worker.context import Handler, WorkerContext
from shared.worker.control import Control
from shared.worker.loop import SMALL_COST, ShardLoop


class Blocking:
    """A pool and its handler: shards that cost at least so much run until `go` is set."""

    def __init__(self, cost: float = 0.0) -> None:
        self.handlers: Mapping[Stage, Handler] = {Stage.TEXT: self}
        self.lane = None
        self.running, self.go = threading.Event(), threading.Event()
        self.cost = cost

    def load(self, lease: Lease, control: Control) -> None:
        pass

    def prepare(self, lease: Lease, control: Control) -> None:
        pass

    def run(self, lease: Lease, prepared: Any, control: Control) -> None:
        if lease.cost >= self.cost:
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
    held, pool = HeldLeases(), Blocking()
    context = WorkerContext(settings, sessions, store, make_broker(settings), load_catalog(), Queue.TEXT, "worker")
    loop = ShardLoop(context, pool, held)  # type: ignore[arg-type]  # these are enough
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


def test_of_two_runners_one_is_kept_for_what_costs_little(
    settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """While a large shard runs, small ones pass it; another large one waits for it, then has its turn."""
    with sessions.begin() as session:
        session.execute(delete(Job))
    texts = {"items": [{"id": "a", "text": "x"}], "encoders": {"image": None, "audio": None}}
    large = [submit(settings, sessions, store, texts, tenant="large") for _ in range(2)]
    with sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id.in_(large)).values(cost=SMALL_COST + 1))
    held, pool = HeldLeases(), Blocking(cost=SMALL_COST + 1)
    context = WorkerContext(settings, sessions, store, make_broker(settings), load_catalog(), Queue.TEXT, "worker")
    loop = ShardLoop(context, pool, held, runners=2)  # type: ignore[arg-type]  # these are enough
    loop.start()
    assert pool.running.wait(10)
    small = [submit(settings, sessions, store, texts, tenant="small") for _ in range(5)]
    loop.hint()

    def done() -> set[str]:
        with sessions() as session:
            ended = select(Shard.job_id).where(Shard.stage == "text", Shard.state == ShardState.DONE)
            return set(session.scalars(ended))

    wait_for(lambda: done() == set(small), seconds=20, what="the end of the small ones")
    assert {lease.job_id for lease in held.leases.values()} == {large[0]}
    pool.go.set()
    wait_for(lambda: done() == {*large, *small}, seconds=20, what="the end of the large ones")
    loop.stop()
    wait_for(lambda: not loop.running, seconds=20, what="the end of the loop")
