"""The feature cache is kept within its size."""

from datetime import datetime

from sqlalchemy import delete, func, select

from services.dispatcher.steps.context import SweepContext
from shared.jobs.models import CacheSegment

#: Segments removed in one sweep.
MOST = 500


def evict(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # only the size counts
    """Removes a tenant's least recently used segments above the limit: rows first, so that nobody is sent to an object
    that is gone; an object that a crash leaves behind is an orphan. Two at once: SKIP LOCKED."""
    newest_first = func.sum(CacheSegment.bytes).over(
        partition_by=CacheSegment.tenant,
        order_by=[CacheSegment.used_at.desc(), CacheSegment.key],
        rows=(None, 0),
    )
    sizes = select(CacheSegment.key, CacheSegment.used_at, newest_first.label("total")).subquery()
    over = (
        select(sizes.c.key)
        .where(sizes.c.total > context.settings.engine.cache_bytes)
        .order_by(sizes.c.used_at)
        .limit(MOST)
    )
    with context.sessions.begin() as session:
        locked = select(CacheSegment.key).where(CacheSegment.key.in_(over)).with_for_update(skip_locked=True)
        gone = session.scalars(
            delete(CacheSegment).where(CacheSegment.key.in_(locked)).returning(CacheSegment.key)
        ).all()
    context.store.delete(gone)
    return len(gone)
