"""Shards whose worker died, jobs past their deadline, hints for what is ready, a warning of what no worker can run."""

from datetime import datetime

from services.dispatcher.steps.context import SweepContext
from shared.jobs import engine
from shared.jobs.registry import stranded_shards
from shared.observability import get_logger

log = get_logger(__name__)

#: Shards taken back in one transaction.
CHUNK = 100


def rescue(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # leases go by the database's clock
    """Takes back shards whose lease ran out. Two at once: the rows are locked, and looked at again under the lock."""
    rescued = 0
    while True:
        with context.sessions.begin() as session:
            count = engine.reclaim_expired(session, limit=CHUNK)
        rescued += count
        if count < CHUNK:
            return rescued


def end_overdue(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # deadlines go by the database's clock
    """Fails jobs that are past their deadline, each in a transaction of its own. Two at once: SKIP LOCKED."""
    ended = 0
    while True:
        with context.sessions.begin() as session:
            if not engine.end_overdue(session):
                return ended
        ended += 1


def hint(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # whatever is ready is ready
    """Hints every queue that has ready shards. Two at once: a hint too many says nothing new."""
    with context.sessions() as session:
        queues = engine.ready_queues(session)
    context.hint(queues)
    return len(queues)


def warn(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # workers are alive by the database's clock
    """Says which shards wait for workers of a newer release. Two at once: it is said twice."""
    with context.sessions() as session:
        stranded = stranded_shards(session)
    for queue, count in stranded.items():
        log.warning("shards wait for newer workers: upgrade this pool", pool=queue.value, shards=count)
    return sum(stranded.values())
