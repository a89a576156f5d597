"""Worker pools in the test's own process: no loop, no threads, no lease that runs out."""

from collections.abc import Mapping

from shared.db import Sessions
from shared.errors import JobError
from shared.jobs import engine
from shared.jobs.layout import finish_plan
from shared.jobs.records import Lease, Plan
from shared.queues import Queue, Stage
from shared.worker.context import Handler
from shared.worker.control import Control

Handlers = Mapping[Stage, Handler]


def work_off(sessions: Sessions, pools: Mapping[Queue, Handlers]) -> list[Lease]:
    """Does everything that is ready in these pools, and what becomes ready by it; returns what was done, in order."""
    done: list[Lease] = []
    while claimed := [(handlers, lease) for queue, handlers in pools.items() for lease in claim(sessions, queue)]:
        for handlers, lease in claimed:
            run_shard(sessions, handlers, lease)
            done.append(lease)
    return done


def claim(sessions: Sessions, queue: Queue) -> list[Lease]:
    """One shard at the most, so that each is seen as the one before left its job."""
    with sessions.begin() as session:
        return engine.claim(session, queue, "worker-test", limit=1)


def run_shard(sessions: Sessions, handlers: Handlers, lease: Lease) -> None:
    """Does a shard as the loop does. A JobError ends the job; whatever else a handler raises passes through."""
    handler, control = handlers[lease.stage], Control(lease.shard_id)
    try:
        handler.load(lease, control)
        with sessions.begin() as session:
            engine.start(session, lease)
        result = handler.store(lease, handler.run(lease, handler.prepare(lease, control), control), control)
    except JobError as error:
        with sessions.begin() as session:
            engine.fail_job(session, lease, error.error_code, error.message)
        return
    with sessions.begin() as session:
        ended = finish_plan(session, lease, result) if isinstance(result, Plan) else engine.finish(session, [result])
        assert ended
