"""The shard loop with a handler of the test's own, on a real Postgres."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import delete, select, update

from deploy.local.servers import Servers
from shared.db import Sessions
from shared.jobs.models import Job, Shard
from shared.jobs.records import Finished, Lease
from shared.jobs.states import ShardState
from shared.lanes.client import LaneClient, LaneFailedError
from shared.lanes.messages import Failed, LaneRequest
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import submit, wait_for
from shared.testing.workers import Held, make_context, run_pool
from shared.worker.context import Handler, Prepared
from shared.worker.control import Control
from shared.worker.loop import SMALL_COST, ShardLoop


class Blocking:
    """A pool and its handler: shards that cost at least so much run until `go` is set."""

    def __init__(self, cost: float = 0.0) -> None:
        self.cost = cost
        self.handlers: Mapping[Stage, Handler] = {Stage.TEXT: self}
        self.lane = None
        self.running, self.go = threading.Event(), threading.Event()

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


class Answering:
    """A pool with a lane: its shard runs, taking breath, until an interactive request was run, or `breaths` times."""

    stage = Stage.TEXT

    def __init__(self, breaths: int) -> None:
        self.handlers = {Stage.TEXT: self}
        self.lane = self
        self.breaths, self.in_shard = breaths, False
        self.answered_in_shard: list[bool] = []
        self.shard_begun = threading.Event()

    def models(self) -> list[str]:
        return ["m"]

    def loaded_models(self) -> list[str]:
        return ["m"]

    def load(self, _: Any, control: Control) -> None:
        pass

    def prepare(self, work: Lease | LaneRequest, control: Control) -> Any:
        return Prepared("value", 1.0, 0) if isinstance(work, LaneRequest) else None

    def run(self, work: Any, prepared: Any = None, control: Control | None = None) -> Any:
        if control is None:
            self.answered_in_shard.append(self.in_shard)
            return [Failed(code="fine", message="") for _ in work]
        self.in_shard = True
        self.shard_begun.set()
        for _ in range(self.breaths):
            control.breathe()
            if self.answered_in_shard:
                break
            time.sleep(0.01)
        self.in_shard = False
        return None

    def store(self, lease: Lease, output: Any, control: Control) -> Finished:
        return Finished(lease, None, items_done=lease.items)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("isolated", "breaths"), [(False, 3000), (True, 30)])
async def test_interactive_requests_go_between_batches_but_not_in_an_isolated_shard(
    settings: Settings, sessions: Sessions, store: ObjectStore, servers: Servers, isolated: bool, breaths: int
) -> None:
    """A request comes while a shard runs: run at its next breath, or, if the shard is isolated, after it."""
    with sessions.begin() as session:
        session.execute(delete(Job))
    items = [{"id": "item", "text": "x"}]
    id = submit(settings, sessions, store, {"items": items, "encoders": {"image": None, "audio": None}})
    with sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id == id).values(isolated=isolated))
    url = servers.redis.url(4)
    context = make_context(settings.model_copy(update={"redis_url": SecretStr(url)}), sessions, store, Queue.TEXT)
    pool = Answering(breaths)
    lanes = LaneClient(url, 64)
    with run_pool(context, lambda _: pool):  # type: ignore[arg-type,return-value]  # enough of a pool
        assert await asyncio.to_thread(pool.shard_begun.wait, 20)
        with pytest.raises(LaneFailedError) as caught:
            await lanes.encode(Modality.TEXT, "m", ["x"], {}, tenant="t", deadline=time.time() + 30)
        assert caught.value.error_code == "fine"
    await lanes.close()
    assert pool.answered_in_shard == [not isolated]
    with sessions() as session:
        assert session.scalar(select(Shard.state).where(Shard.job_id == id, Shard.stage == "text")) == ShardState.DONE


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
    held, pool = Held(), Blocking(cost=SMALL_COST + 1)
    context = make_context(settings, sessions, store, Queue.TEXT)
    loop = ShardLoop(context, pool, held, runners=2)  # type: ignore[arg-type]  # Held is enough of HeldLeases
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
