"""Ten items beside another tenant's million: `python tests/benchmarks/fairness.py [ROUNDS]`.

Three measurements on real servers, one JSON line each: how long ten items take through the shard loops of a pool whose
workers need 1 ms an item; how long a manifest of ten waits to be planned while a large one is; and what a claim costs
in a long queue.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, text

from deploy.local.servers import Servers
from shared.broker import make_broker, send_hints
from shared.catalog import load_catalog
from shared.db import Sessions, make_engine, make_sessions
from shared.ids import new_id
from shared.jobs import engine, files, repository
from shared.jobs.layout import lay_out
from shared.jobs.models import Job, Shard
from shared.jobs.records import Finished, Lease, Plan, Slice, StoredObject
from shared.jobs.repository import NewJob
from shared.jobs.states import ENDED_JOBS
from shared.migrations.upgrade import upgrade
from shared.queues import Modality, Queue, Stage
from shared.schemas import FeaturesRequest
from shared.settings import Settings, load_settings
from shared.storage import keys
from shared.storage.objects import ObjectStore, make_store
from shared.testing.workers import Held
from shared.worker.context import Handler, WorkerContext
from shared.worker.control import Control
from shared.worker.loop import ShardLoop

MILLION, TEN = [256] * 3907, [10]
SECONDS_PER_ITEM = 0.001
WORKERS = {Queue.TEXT: 2, Queue.FUSION: 1}

#: Lines of the large manifest.
LINES = 300_000


def main(rounds: int) -> None:
    """Prints the three."""
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder), durable=False) as servers:
        os.environ.update(servers.environment, TRIVIUM_LOG_LEVEL="ERROR")
        settings = load_settings()
        db = make_engine(settings.database_url.get_secret_value(), pool_size=20)
        upgrade(db)
        store = make_store(settings)
        store.ensure_bucket()
        sessions = make_sessions(db)
        show("ten items, 1 ms each, two text workers", through_the_pool(settings, sessions, store, rounds))
        empty(sessions)
        show(f"planning ten lines beside {LINES:,}", planning(settings, sessions, store))
        empty(sessions)
        show("a claim", claims(sessions))
        db.dispose()


def show(name: str, facts: Mapping[str, float]) -> None:
    """One line."""
    print(json.dumps({"measured": name, **{key: round(value, 2) for key, value in facts.items()}}), flush=True)


def empty(sessions: Sessions) -> None:
    """No jobs."""
    with sessions.begin() as session:
        session.execute(delete(Job))


# Through the pool


class Pool:
    """Workers of one queue that need `SECONDS_PER_ITEM`."""

    def __init__(self) -> None:
        self.handlers: Mapping[Stage, Handler] = dict.fromkeys((Stage.TEXT, Stage.FUSION), self)
        self.lane = None

    def load(self, lease: Lease, control: Control) -> None:
        """No model."""

    def prepare(self, lease: Lease, control: Control) -> None:
        """Nothing to decode."""

    def run(self, lease: Lease, prepared: None, control: Control) -> None:
        """Works."""
        time.sleep(lease.items * SECONDS_PER_ITEM)

    def store(self, lease: Lease, output: None, control: Control) -> Finished:
        """Nothing to write."""
        succeeded = lease.items if lease.stage is Stage.FUSION else 0
        return Finished(lease, None, items_done=lease.items, succeeded=succeeded)

    def loaded_models(self) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to close."""


class Hints:
    """In the place of the broker: hints reach the loops at once."""

    def __init__(self) -> None:
        self.sender = self
        self.loops: dict[Queue, list[ShardLoop]] = {queue: [] for queue in Queue}

    def add(self, queues: Iterable[Queue]) -> None:
        """Wakes the loops of these queues."""
        for queue in queues:
            for loop in self.loops[queue]:
                loop.hint()


def through_the_pool(settings: Settings, sessions: Sessions, store: ObjectStore, rounds: int) -> dict[str, float]:
    """Seconds from the submission of ten items to the end of their job."""
    with pool(settings, sessions, store) as hints:
        alone = [seconds_for_ten(sessions, hints) for _ in range(rounds)]
        submit(sessions, hints, "large", MILLION)
        beside = [seconds_for_ten(sessions, hints) for _ in range(rounds)]
        with sessions() as session:
            left = session.scalar(select(func.sum(Shard.items)).where(Shard.stage == "text", Shard.state == "ready"))
    return {
        "alone_s": statistics.median(alone),
        "beside_a_million_s": statistics.median(beside),
        "longest_s": max(beside),
        "ratio": statistics.median(beside) / statistics.median(alone),
        "first_come_first_served_s": (left or 0) * SECONDS_PER_ITEM / WORKERS[Queue.TEXT],
    }


@contextmanager
def pool(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[Hints]:
    """Workers that run, as threads."""
    hints = Hints()
    for queue, count in WORKERS.items():
        for number in range(count):
            broker: Any = hints
            name = f"{queue}-{number}"
            context = WorkerContext(settings, sessions, store, broker, load_catalog(), queue, name)
            held: Any = Held()
            hints.loops[queue].append(ShardLoop(context, Pool(), held))
    loops = [loop for loops in hints.loops.values() for loop in loops]
    for loop in loops:
        loop.start()
    yield hints
    for loop in loops:
        loop.stop()
    while any(loop.running for loop in loops):
        time.sleep(0.05)


def seconds_for_ten(sessions: Sessions, hints: Hints) -> float:
    """One round."""
    began = time.perf_counter()
    id = submit(sessions, hints, "small", TEN)
    while True:
        with sessions() as session:
            if session.scalar(select(Job.status).where(Job.id == id)) in ENDED_JOBS:
                return time.perf_counter() - began
        time.sleep(0.005)


def submit(sessions: Sessions, hints: Hints, tenant: str, sizes: Sequence[int]) -> str:
    """A planned job of texts with slices of these sizes; its id."""
    schema = {"shard_size": 256, "encoders": {"text": {"id": "text-encoder", "dimension": 2}}, "fitted": []}
    parts = [Slice(i, StoredObject(f"slice-{i}", "0" * 64, 1), n, {Modality.TEXT: n}) for i, n in enumerate(sizes)]
    with sessions.begin() as session:
        job = Job(id=new_id("job"), tenant=tenant, type="features", request={}, request_sha256="")
        session.add(job)
        session.flush()
        session.refresh(job)
        lay_out(session, job, Plan(parts, schema, sum(sizes)))
    hints.add([Queue.TEXT])
    return job.id


# Planning


def planning(settings: Settings, sessions: Sessions, store: ObjectStore) -> dict[str, float]:
    """Seconds from the submission of a manifest of ten lines until it is planned, and what the large one takes."""
    large, small = (upload(sessions, store, tenant, lines) for tenant, lines in (("large", LINES), ("small", 10)))
    broker = make_broker(settings)
    dispatcher = subprocess.Popen([sys.executable, "-m", "services.dispatcher"])
    try:
        wait_until_planned(sessions, queue(sessions, broker, "small", small))  # it has started
        alone = [wait_until_planned(sessions, queue(sessions, broker, "small", small)) for _ in range(5)]
        began = time.perf_counter()
        id = queue(sessions, broker, "large", large)
        while status(sessions, id) == "queued":
            time.sleep(0.01)
        beside = [wait_until_planned(sessions, queue(sessions, broker, "small", small)) for _ in range(3)]
        done_before = status(sessions, id) == "running"
        wait_until_planned(sessions, id)
        took = time.perf_counter() - began
    finally:
        dispatcher.terminate()
        dispatcher.wait()
    return {
        "alone_s": statistics.median(alone), "beside_s": max(beside), "large_s": took, "large_was_first": done_before,
    }  # fmt: skip


def upload(sessions: Sessions, store: ObjectStore, tenant: str, lines: int) -> str:
    """A manifest's file id."""
    content = b"".join(b'{"id": "item-%d", "text": "some words about item %d"}\n' % (i, i) for i in range(lines))
    stored = store.put(keys.blob(tenant, new_id("upload")), content)
    with sessions.begin() as session:
        file, _ = files.add_file(
            session, tenant=tenant, stored=stored, content_type="x/y", filename="f", purpose="user_data"
        )
    return file.id


def queue(sessions: Sessions, broker: Any, tenant: str, file: str) -> str:
    """A job whose manifest is to be planned; its id."""
    request = FeaturesRequest.model_validate({"input": {"file_id": file}, "encoders": {"image": None, "audio": None}})
    with sessions.begin() as session:
        new = NewJob(
            new_id("job"), tenant, request.model_dump(mode="json"), "", file_ids=[file],
            input_bytes=files.total_bytes(session, tenant, [file]),
        )  # fmt: skip
        job = repository.create(session, new)
        assert job is not None
        repository.queue_plan(session, job)
    send_hints(broker, [Queue.PLAN])
    return new.id


def status(sessions: Sessions, id: str) -> str | None:
    """A job's."""
    with sessions() as session:
        return session.scalar(select(Job.status).where(Job.id == id))


def wait_until_planned(sessions: Sessions, id: str) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    while status(sessions, id) in {"queued", "planning"}:
        time.sleep(0.01)
    return time.perf_counter() - began


# Claims


def claims(sessions: Sessions) -> dict[str, float]:
    """Milliseconds of a claim, its transaction included, by the length of the queue."""
    found = {}
    submit(sessions, Hints(), "large", MILLION)
    for times, name in ((0, "ms_of_3900"), (20, "ms_of_80000")):
        if times:
            with sessions.begin() as session:
                session.execute(_MULTIPLY, {"times": times})
        taken = []
        for _ in range(60):
            began = time.perf_counter()
            with sessions.begin() as session:
                assert engine.claim(session, Queue.TEXT, "worker")
            taken.append((time.perf_counter() - began) * 1000)
        found[name] = statistics.median(taken)
    return found


_MULTIPLY = text("""
    INSERT INTO shards (
        job_id, tenant, stage, queue, index, state, waiting_on, spec, items, affinity, priority, cost, vtime, attempts,
        early_deaths, isolated, strikes, result, id
    )
    SELECT job_id, tenant, stage, queue, index + n * 10000, state, waiting_on, spec, items, affinity, priority, cost,
           vtime + n * 1000000, attempts, early_deaths, isolated, strikes, result,
           nextval(pg_get_serial_sequence('shards', 'id'))
    FROM shards, generate_series(1, :times) AS n WHERE state = 'ready'
""")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
