"""How much of a tenant's work waits, and when that is too much to take more.

Counted are the tenant's jobs that have not ended: the bytes of their input, their open shards, and the age of the
oldest that no worker has begun. A single long job is never held against its tenant: only what waits behind it grows
old.
"""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import BusyError, TooLargeError
from shared.settings import Limits

#: So few open shards burden nobody, however long they have waited for a pool that is away.
SMALL_BACKLOG = 1000

#: What `Retry-After` says: between these, and the first of them while nothing has ended that could tell the pace.
SOONEST_SECONDS, LATEST_SECONDS = 30, 3600


@dataclass(frozen=True)
class Backlog:
    """A tenant's unfinished jobs; `seconds` is the age of the oldest that no worker has begun."""

    bytes: int
    shards: int
    seconds: float


def read_backlog(session: Session, tenant: str) -> Backlog:
    """What waits now."""
    row = session.execute(_BACKLOG, {"tenant": tenant}).one()
    return Backlog(int(row.bytes), int(row.shards), float(row.seconds))


def check_backlog(session: Session, tenant: str, limits: Limits, input_bytes: int) -> None:
    """Raises BusyError (`queue_full`) if a job with so much input is too much for now, and TooLargeError if it always
    would be."""
    if input_bytes > limits.queued_bytes:
        message = (
            f"The input of this job has {input_bytes} bytes, and that of all your unfinished jobs together may have "
            f"{limits.queued_bytes}; split it."
        )
        raise TooLargeError(message)
    backlog = read_backlog(session, tenant)
    if backlog.bytes + input_bytes > limits.queued_bytes:
        message = f"With this job, the input of your unfinished jobs would exceed {limits.queued_bytes} bytes"
        raise _queue_full(session, tenant, message, shards=None)
    if backlog.shards > limits.waiting_shards:
        message = f"More than {limits.waiting_shards} shards of your jobs wait already"
        raise _queue_full(session, tenant, message, shards=backlog.shards - limits.waiting_shards)
    if backlog.seconds > limits.waiting_seconds and backlog.shards > SMALL_BACKLOG:
        message = f"A job of yours has waited more than {limits.waiting_seconds:g} seconds for its turn"
        raise _queue_full(session, tenant, message, shards=None)


def check_with_others(session: Session, tenant: str, limits: Limits) -> None:
    """The same for a job whose row this transaction has written: tenants' new jobs pass here one by one, so that many
    at once cannot exceed the limit together. Raises BusyError."""
    session.execute(_ONE_BY_ONE, {"tenant": tenant})
    check_backlog(session, tenant, limits, 0)


def _queue_full(session: Session, tenant: str, message: str, *, shards: int | None) -> BusyError:
    seconds = _seconds_until_ended(session, tenant, shards)
    return BusyError(f"{message}; send this job when some have ended.", code="queue_full", retry_after=seconds)


def _seconds_until_ended(session: Session, tenant: str, shards: int | None) -> int:
    """When so many shards (None: all) of the oldest job that is under way should have ended, at its pace so far."""
    pace = session.execute(_PACE, {"tenant": tenant}).first()
    if pace is None:
        return SOONEST_SECONDS
    wanted = pace.open if shards is None else shards
    seconds = float(wanted) * float(pace.seconds) / float(pace.ended)
    return round(min(max(seconds, SOONEST_SECONDS), LATEST_SECONDS))


_BACKLOG = text("""
    SELECT coalesce(sum(input_bytes), 0) AS bytes, coalesce(sum(shards_open), 0) AS shards,
           coalesce(extract(epoch FROM clock_timestamp() - (
               SELECT created_at FROM jobs AS waiting
               WHERE tenant = :tenant AND finished_at IS NULL AND NOT EXISTS (
                   SELECT 1 FROM job_stages
                   WHERE job_id = waiting.id AND stage <> 'plan' AND started_at IS NOT NULL
               )
               ORDER BY created_at LIMIT 1
           )), 0) AS seconds
    FROM jobs WHERE tenant = :tenant AND finished_at IS NULL
""")

_PACE = text("""
    SELECT max(jobs.shards_open) AS open, sum(shards_done + shards_failed) AS ended,
           extract(epoch FROM clock_timestamp() - min(job_stages.started_at)) AS seconds
    FROM jobs JOIN job_stages ON job_id = jobs.id
    WHERE tenant = :tenant AND jobs.finished_at IS NULL AND stage <> 'plan'
    GROUP BY jobs.id HAVING sum(shards_done + shards_failed) > 0 AND min(job_stages.started_at) IS NOT NULL
    ORDER BY min(jobs.created_at) LIMIT 1
""")

#: Held until the transaction ends. The number names the lock, as any other would.
_ONE_BY_ONE = text("SELECT pg_advisory_xact_lock(7417182, hashtext(:tenant))")
