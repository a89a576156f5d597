"""The entry of every worker service: a Celery worker that carries hints to the shard loop.

Celery runs one thread that only sets an event; the shard loop starts as a step of the *worker*, not of its consumer, so
that it runs with Redis down. SIGTERM drains: Celery stops its steps, and ours hands back what it cannot finish.
"""

import os
import warnings
from typing import Any

from celery import bootsteps
from celery.platforms import SecurityWarning

from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import make_engine, make_sessions
from shared.observability import configure_logging, get_logger
from shared.queues import CONSUMERS, HINT_TASK, Queue
from shared.settings import load_settings
from shared.storage.objects import make_store
from shared.version import trivium_version
from shared.worker.context import Pool, PoolFactory, WorkerContext, new_worker_id
from shared.worker.leases import HeldLeases
from shared.worker.loop import ShardLoop
from shared.worker.scratch import use_scratch_folder

log = get_logger(__name__)


def build_context(queue: Queue) -> WorkerContext:
    """Settings and clients of this process, from the environment. Connects to nothing yet."""
    settings = load_settings()
    configure_logging(CONSUMERS[queue], settings.log_level)
    worker_id = new_worker_id(queue)
    db = make_engine(settings.database_url.get_secret_value(), application=worker_id)
    return WorkerContext(
        settings=settings,
        sessions=make_sessions(db),
        store=make_store(settings),
        broker=make_broker(settings),
        catalog=load_catalog(settings.encoders_file),
        queue=queue,
        worker_id=worker_id,
    )


def run_worker(queue: Queue, make_pool: PoolFactory, *, runners: int = 1) -> int:
    """Runs a worker of `queue`, so many shards at a time, until SIGTERM or SIGINT; returns the exit code."""
    context = build_context(queue)
    use_scratch_folder()
    pool = make_pool(context)  # decode processes are spawned here, before torch is loaded
    held = HeldLeases(context.worker_id, queue, trivium_version(), pool.loaded_models)
    loop = ShardLoop(context, pool, held, runners=runners)
    app = context.broker

    @app.task(name=HINT_TASK)  # type: ignore[untyped-decorator]
    def hint() -> None:
        loop.hint()

    app.steps["worker"].add(_loop_step(loop, pool, context.settings.worker.drain_seconds))
    # Celery warns root of pickled messages; ours are JSON, and the embedded stack may well run as root.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = app.Worker(
        hostname=f"{context.worker_id}@{os.uname().nodename}",
        pool="threads",
        concurrency=1,
        queues=[queue.value],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=context.settings.log_level,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _loop_step(loop: ShardLoop, pool: Pool, drain_seconds: float) -> type[bootsteps.StartStopStep]:
    class ShardLoopStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery is untyped
        """Starts and drains the shard loop with the worker."""

        def start(self, worker: Any) -> None:  # noqa: ARG002
            loop.start()
            log.info("worker started")

        def stop(self, worker: Any) -> None:  # noqa: ARG002
            loop.drain(drain_seconds)
            pool.close()
            log.info("worker drained")

        terminate = stop

    return ShardLoopStep
