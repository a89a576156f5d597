"""The entry of every worker service: the shard loop from start to drain.

SIGTERM or SIGINT drains: nothing more is claimed, what runs gets `TRIVIUM_DRAIN_SECONDS` to end, the rest is handed
back. A second one hands everything back at once. Either way the process leaves with 0, at the latest
`LEAVE_SECONDS` after the drain's time is up, whatever hangs: a library, Redis, Postgres or S3.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import make_engine, make_sessions
from shared.language_models import load_language_models
from shared.migrations.check import SchemaError, require_schema
from shared.observability import configure_logging, get_logger
from shared.queues import CONSUMERS, Queue
from shared.settings import SettingsError, load_settings
from shared.storage.objects import make_store
from shared.worker.context import PoolFactory, WorkerContext, new_worker_id
from shared.worker.hints import listen_for_hints
from shared.worker.leases import HeldLeases
from shared.worker.loop import ShardLoop
from shared.worker.scratch import use_scratch_folder
from shared.worker.stopping import StopRequests

log = get_logger(__name__)

#: What runs when the drain's time is up gets this long to stop at its next batch; then the keeper hands back the rest.
STOP_SECONDS, HAND_BACK_SECONDS = 4.0, 4.0

#: All that follows the drain, at most: stopping, handing back, closing the pool.
LEAVE_SECONDS = STOP_SECONDS + HAND_BACK_SECONDS + 2.0


def build_context(queue: Queue) -> WorkerContext:
    """Settings and clients of this process, from the environment.

    Waits for Postgres. Raises SettingsError, and SchemaError if the database is not migrated.
    """
    settings = load_settings()
    configure_logging(CONSUMERS[queue], settings.log_level)
    worker_id = new_worker_id(queue)
    db = make_engine(settings.database_url.get_secret_value(), application=worker_id)
    require_schema(db)
    return WorkerContext(
        settings=settings,
        sessions=make_sessions(db),
        store=make_store(settings),
        broker=make_broker(settings),
        catalog=load_catalog(settings.encoders_file),
        queue=queue,
        worker_id=worker_id,
        language_models=load_language_models(settings.language_models_file),
    )


def run_worker(queue: Queue, make_pool: PoolFactory, *, runners: int = 1, ahead: int = 1) -> NoReturn:
    """Runs a worker of `queue` until SIGTERM or SIGINT, and ends the process.

    It runs so many shards at a time, and holds so many behind them.
    """
    requests = StopRequests()
    try:
        context = build_context(queue)
    except (SettingsError, SchemaError) as error:
        sys.exit(error.message)
    scratch = use_scratch_folder()
    pool = make_pool(context)  # decode processes are spawned here, before torch is loaded
    held = HeldLeases(context.worker_id, queue, pool.loaded_models)
    loop = ShardLoop(context, pool, held, runners=runners, ahead=ahead)
    requests.arm()
    loop.start()
    listen_for_hints(
        context.broker,
        queue,
        name=context.worker_id,
        log_level=context.settings.log_level,
        on_hint=loop.hint,
        on_end=lambda: requests.put(1),
    )
    log.info("worker started")
    exit_code = requests.wait()
    drain(loop, requests, context.settings.worker.drain_seconds)
    held.close(HAND_BACK_SECONDS)
    pool.close()
    log.info("worker drained")
    _leave(scratch, exit_code)


def drain(loop: ShardLoop, requests: StopRequests, seconds: float) -> None:
    """Stops the loop: what runs gets so many seconds to end, then a few to stop. Another request ends the wait."""
    loop.stop()
    if _wait(lambda: not loop.busy, requests, seconds):
        loop.break_off()
        _wait(lambda: not loop.running, requests, STOP_SECONDS)


def _wait(done: Callable[[], bool], requests: StopRequests, seconds: float) -> bool:
    """Waits until something is done, at most so many seconds; False as soon as another request comes."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        if requests.get(0.05) is not None:
            return False
    return True


def _leave(scratch: Path, exit_code: int) -> NoReturn:
    """Ends the process as it is: threads that hang, in a library or on a dead connection, would hold up its exit."""
    shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
