"""Shards whose worker died, jobs past their deadline, and hints for whatever is ready."""

from datetime import datetime

from services.dispatcher.steps.context import SweepContext
from shared.jobs import engine

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
