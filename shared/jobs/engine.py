"""The job engine: shards are claimed, started, finished, retried, isolated and rescued here, and nowhere else.

Postgres is the queue. Each function takes a session and does its work in the caller's transaction. Lock order, so that
no two of them can deadlock: the job's row, then its shards, then its stages, then the clocks.

A shard is held under a *lease*: a token and an expiry that only its holder knows. Every write that ends or hands back a
shard is conditional on the token, so a worker that was frozen past its lease changes nothing when it thaws.
"""

import math
import random
from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, select, text, update
from sqlalchemy.orm import Session

from shared.errors import LeaseLostError
from shared.jobs.cache import remember
from shared.jobs.models import Job, JobStage, QueueClock, Shard
from shared.jobs.protocol import PROTOCOL
from shared.jobs.records import Finished, Lease, Renewal, StoredObject
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.jobs.transitions import (
    add_event,
    add_item_errors,
    back_to_ready,
    cancel_waiting,
    end_job,
    end_shard,
    fail_early,
    held,
    lock_job,
    place_of,
    register_model,
    set_status,
)
from shared.queues import Queue, Stage
from shared.schemas import JobStatus

#: How many of the first ready shards a claim looks at to find one that suits the loaded models.
CLAIM_WINDOW = 64

#: Workers may die this often with a shard, by no item's doing, before it is given up.
MAX_DEATHS = 10

#: After Postgres starts, no lease is taken back for this long.
RESTART_GRACE = timedelta(seconds=10)


def claim(
    session: Session,
    queue: Queue,
    worker: str,
    *,
    limit: int = 1,
    loaded: Sequence[str] = (),
    protocol: int = PROTOCOL,
    lease_seconds: float = 30.0,
    starving_seconds: float = 10.0,
    largest: float = math.inf,
) -> list[Lease]:
    """Leases up to `limit` ready shards of `protocol` or below that cost at most `largest`: by priority, then the fair
    tag; those that `loaded` models suit go first unless the oldest in sight has waited `starving_seconds`."""
    rows = session.execute(
        _CLAIM,
        {
            "queue": queue.value, "worker": worker, "limit": limit, "loaded": list(loaded), "window": CLAIM_WINDOW,
            "lease": timedelta(seconds=lease_seconds), "starving": timedelta(seconds=starving_seconds),
            "protocol": protocol, "largest": largest,
        },
    ).all()  # fmt: skip
    if not rows:
        return []
    latest = max(row.vtime for row in rows)
    session.execute(
        update(QueueClock)
        .where(QueueClock.queue == queue.value, QueueClock.vtime < latest)
        .values(vtime=latest)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(rows, key=lambda row: (-row.priority, row.vtime, row.id))
    return [
        Lease(
            shard_id=row.id, token=row.lease_token, job_id=row.job_id, tenant=row.tenant, stage=Stage(row.stage),
            index=row._mapping["index"], items=row.items, cost=row.cost, spec=row.spec, isolated=row.isolated,
            strikes={int(k): v for k, v in row.strikes.items()}, request=row.request, schema=row.schema,
            checkpoints=row.checkpoints,
            protocol=row.protocol,
        )
        for row in rows
    ]  # fmt: skip


_CLAIM = text("""
    WITH head AS MATERIALIZED (
        SELECT id, affinity, ready_at FROM shards
        WHERE queue = :queue AND state = 'ready' AND run_after <= clock_timestamp()
              AND protocol <= :protocol AND cost <= :largest
        ORDER BY priority DESC, vtime, id LIMIT :window
    ), starving AS (
        SELECT coalesce(min(ready_at) < clock_timestamp() - cast(:starving AS interval), false) AS yes FROM head
    ), chosen AS (
        SELECT s.id FROM shards s JOIN head h ON h.id = s.id, starving
        WHERE s.state = 'ready'
        ORDER BY (h.affinity = ANY(cast(:loaded AS text[])) AND NOT starving.yes) DESC, s.priority DESC, s.vtime, s.id
        LIMIT :limit FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE shards SET state = 'leased', lease_token = gen_random_uuid(), worker = :worker, started_at = NULL,
           probe = NULL, lease_expires_at = clock_timestamp() + cast(:lease AS interval)
    FROM chosen, jobs WHERE shards.id = chosen.id AND jobs.id = shards.job_id
    RETURNING shards.*, jobs.request, jobs.schema
""")


def start(session: Session, lease: Lease) -> None:
    """Marks the beginning of processing: this is what counts as an attempt. Raises LeaseLostError.

    Said twice (the answer to the first commit was lost with its connection), it counts once.
    """
    if lease.stage is Stage.PLAN:
        job = lock_job(session, lease.job_id)
        if job is not None and job.status == JobStatus.QUEUED:
            set_status(session, job, JobStatus.PLANNING)
    changed = session.execute(
        update(Shard)
        .where(Shard.id == lease.shard_id, Shard.lease_token == lease.token)
        .values(
            attempts=Shard.attempts + case((Shard.started_at.is_(None), 1), else_=0), started_at=func.clock_timestamp()
        )
        .returning(Shard.id)
    ).first()
    if changed is None:
        raise LeaseLostError(f"The lease of shard {lease.shard_id} was lost before it was started.")
    session.execute(
        update(JobStage)
        .where(JobStage.job_id == lease.job_id, JobStage.stage == lease.stage.value, JobStage.started_at.is_(None))
        .values(started_at=func.clock_timestamp())
    )


def renew(session: Session, held: Sequence[tuple[int, UUID]], *, lease_seconds: float = 30.0) -> Renewal:
    """Extends leases. Those not in `kept` are lost; those in `cancelled` belong to a job that is being stopped."""
    tokens = [token for _, token in held]
    rows = session.execute(
        update(Shard)
        .where(Shard.id.in_([id for id, _ in held]), Shard.lease_token.in_(tokens), Job.id == Shard.job_id)
        .values(lease_expires_at=func.clock_timestamp() + timedelta(seconds=lease_seconds))
        .returning(Shard.id, Job.status)
        .execution_options(synchronize_session=False)
    ).all()
    stopped = {JobStatus.CANCELLING, *ENDED_JOBS}
    return Renewal(frozenset(r.id for r in rows), frozenset(r.id for r in rows if r.status in stopped))


def abandon(session: Session, held: Sequence[tuple[int, UUID]]) -> None:
    """Lets leases run out at once: their worker is dead. The sweep does what a death asks for."""
    session.execute(
        update(Shard)
        .where(Shard.id.in_([id for id, _ in held]), Shard.lease_token.in_([token for _, token in held]))
        .values(lease_expires_at=func.clock_timestamp())
    )


def probe(session: Session, lease: Lease, item_index: int | None) -> None:
    """Isolated shards: records which item is about to be tried (None: none any more). Raises LeaseLostError."""
    changed = session.execute(
        update(Shard)
        .where(Shard.id == lease.shard_id, Shard.lease_token == lease.token)
        .values(probe=item_index)
        .returning(Shard.id)
    ).first()
    if changed is None:
        raise LeaseLostError(f"The lease of shard {lease.shard_id} was lost.")


def checkpoint(session: Session, lease: Lease, name: str, stored: StoredObject) -> None:
    """Notes how far training is; the next attempt resumes from there. Progress resets what counts against the shard.

    Raises LeaseLostError.
    """
    shard = held(session, lease.shard_id, lease.token)
    if shard is None:
        raise LeaseLostError(f"The lease of shard {lease.shard_id} was lost.")
    shard.checkpoints = {**shard.checkpoints, name: {"key": stored.key, "sha256": stored.sha256}}
    shard.attempts, shard.early_deaths = 1, 0


def report(session: Session, lease: Lease, type: str, data: dict[str, Any]) -> None:
    """Writes an event of the shard's job. Raises LeaseLostError."""
    job = lock_job(session, lease.job_id)
    if job is None or held(session, lease.shard_id, lease.token) is None:
        raise LeaseLostError(f"The lease of shard {lease.shard_id} was lost.")
    add_event(session, job.id, type, data)


def finish(session: Session, results: Sequence[Finished]) -> set[int]:
    """Ends shards as done, with their counters, what waited for them, and the job if they were its last.

    Returns the ids of those that counted; the others' leases were lost and nothing of theirs was written.
    """
    accepted = set()
    for result in sorted(results, key=lambda r: (r.lease.job_id, r.lease.stage, r.lease.index)):
        job = lock_job(session, result.lease.job_id)
        shard = held(session, result.lease.shard_id, result.lease.token)
        if job is None or shard is None:
            continue
        if result.stored is not None:
            shard.result_key, shard.result_sha256 = result.stored.key, result.stored.sha256
            shard.result_bytes = result.stored.bytes
        shard.result = {
            "items_done": result.items_done, "items_cached": result.items_cached, "rows": result.rows,
            "succeeded": result.succeeded, "partial": result.partial, "failed": result.failed,
        }  # fmt: skip
        job.items_succeeded += result.succeeded
        job.items_partial += result.partial
        job.items_failed += result.failed
        if result.schema_update:
            job.schema = _merged(job.schema, result.schema_update)
        if result.model is not None and result.stored is not None:
            register_model(session, job, result.model, result.stored)
        if result.cached is not None:
            remember(session, job.tenant, result.cached)
        add_item_errors(session, job.id, result.failures, shard_index=shard.index)
        end_shard(session, job, shard, ShardState.DONE)
        accepted.add(shard.id)
    return accepted


def _merged(schema: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """A job's schema with more in it. Of objects that both have, the entries: each fit of a job names its own model."""
    both = {k: {**schema[k], **v} for k, v in update.items() if isinstance(v, dict) and isinstance(schema.get(k), dict)}
    return {**schema, **update, **both}


def release(session: Session, lease: Lease, *, delay_seconds: float = 0.0) -> None:
    """Hands a shard back unfinished: a drain, an outage, a cancelled job. Its attempt is given back."""
    job = lock_job(session, lease.job_id)
    _release(session, job, held(session, lease.shard_id, lease.token), delay_seconds)


def hand_back(session: Session, leases: Sequence[tuple[int, UUID]]) -> None:
    """Releases what a worker holds that has to leave: nobody died, and no attempt is spent."""
    tokens = dict(leases)
    places = select(Shard.id, Shard.job_id).where(Shard.id.in_(tokens)).order_by(Shard.job_id, Shard.id)
    for id, job_id in session.execute(places).all():
        job = lock_job(session, job_id)
        _release(session, job, held(session, id, tokens[id]), 0.0)


def _release(session: Session, job: Job | None, shard: Shard | None, delay_seconds: float) -> None:
    if job is None or shard is None:
        return
    if job.status == JobStatus.CANCELLING or job.status in ENDED_JOBS:
        end_shard(session, job, shard, ShardState.CANCELLED)
        return
    if shard.started_at is not None:
        shard.attempts -= 1
    back_to_ready(shard, delay_seconds)


def fail(session: Session, lease: Lease, code: str, message: str, *, max_attempts: int = 4) -> None:
    """An attempt went wrong: again after a pause, or, attempts spent, the shard failed."""
    job = lock_job(session, lease.job_id)
    shard = held(session, lease.shard_id, lease.token)
    if job is None or shard is None:
        return
    shard.error_code, shard.error_message = code, message[:2000]
    if job.status == JobStatus.CANCELLING or job.status in ENDED_JOBS:
        end_shard(session, job, shard, ShardState.CANCELLED)
    elif shard.attempts >= max_attempts:
        end_shard(session, job, shard, ShardState.FAILED)
    else:
        back_to_ready(shard, backoff_seconds(shard.attempts))
        add_event(session, job.id, "shard.retried", {**place_of(shard), "attempt": shard.attempts, "code": code})


def fail_job(session: Session, lease: Lease, code: str, message: str) -> None:
    """Something that is no item's fault ends the job: what was not begun is cancelled, what runs is told to stop."""
    job = lock_job(session, lease.job_id)
    shard = held(session, lease.shard_id, lease.token)
    if job is None or shard is None:
        return
    shard.error_code, shard.error_message = code, message[:2000]
    if job.status not in ENDED_JOBS and job.status != JobStatus.CANCELLING:
        fail_early(session, job, code, message[:2000])
    end_shard(session, job, shard, ShardState.FAILED)


def cancel(session: Session, job: Job) -> None:
    """Asks for a job's end: waiting shards are cancelled now, running ones at their next batch. `job` is locked."""
    if job.status in ENDED_JOBS or job.status == JobStatus.CANCELLING:
        return
    job.cancel_requested_at = func.clock_timestamp()
    set_status(session, job, JobStatus.CANCELLING)
    cancel_waiting(session, job)
    if job.shards_open == 0:
        end_job(session, job)


def end_overdue(session: Session) -> bool:
    """Fails a job that is past its deadline (`deadline_exceeded`). False: there is none that nobody else has locked."""
    overdue = (
        (Job.deadline_at <= func.clock_timestamp())
        & Job.finished_at.is_(None)
        & (Job.status != JobStatus.CANCELLING)  # it ends anyway
    )
    # The conditions hold under the lock, too: a job that ended or was given a new deadline meanwhile is not returned.
    oldest = select(Job).where(overdue).order_by(Job.deadline_at).limit(1)
    job = session.scalar(oldest.with_for_update(skip_locked=True))
    if job is None or job.deadline_at is None:
        return False
    deadline = job.deadline_at.astimezone(UTC)
    message = f"The job had not ended by its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC; a retry gives it a new one."
    fail_early(session, job, "deadline_exceeded", message)
    return True


def reclaim_expired(session: Session, *, limit: int = 100) -> int:
    """Takes back shards whose lease ran out: their worker died, froze or was cut off. Returns how many."""
    expired = (
        (Shard.state == ShardState.LEASED)
        & (Shard.lease_expires_at <= func.clock_timestamp())
        # Nobody could renew while Postgres itself was down: give the living time to do so.
        & (func.clock_timestamp() > func.pg_postmaster_start_time() + RESTART_GRACE)
    )
    found = session.execute(select(Shard.id, Shard.job_id).where(expired).order_by(Shard.job_id, Shard.id).limit(limit))
    count = 0
    for id, job_id in found.all():
        # A job that is being planned or ended may be locked for seconds; the others must not wait for it.
        job = lock_job(session, job_id, skip_locked=True)
        if job is None:
            continue
        shard = session.scalar(
            select(Shard).where(Shard.id == id, expired).with_for_update().execution_options(populate_existing=True)
        )
        if shard is not None:
            _after_death(session, job, shard)
            count += 1
    return count


def _after_death(session: Session, job: Job, shard: Shard) -> None:
    if job.status == JobStatus.CANCELLING or job.status in ENDED_JOBS:
        end_shard(session, job, shard, ShardState.CANCELLED)
        return
    began, first, item = shard.started_at is not None, not shard.isolated, shard.probe
    # Four attempts are for what goes wrong in a shard; that machines fail or are taken away says nothing about it.
    shard.early_deaths += item is None and not (began and first)
    if shard.early_deaths > MAX_DEATHS:
        shard.error_code, shard.error_message = "worker_died", "Every worker that tried this shard died."
        end_shard(session, job, shard, ShardState.FAILED)
        return
    if began:
        shard.isolated = True
        shard.attempts -= not first
        if item is not None:
            shard.strikes = {**shard.strikes, str(item): shard.strikes.get(str(item), 0) + 1}
        add_event(session, job.id, "shard.rescued", {**place_of(shard), "worker": shard.worker, "item_index": item})
    back_to_ready(shard, 0.0)


def backoff_seconds(attempts: int) -> float:
    """1, 4, 16 … seconds after the first, second, third attempt, ± 50 %."""
    return float(4 ** max(attempts - 1, 0)) * random.uniform(0.5, 1.5)


def ready_queues(session: Session) -> dict[Queue, int]:
    """How many shards could be claimed now, by queue; queues with none are left out."""
    rows = session.execute(
        select(Shard.queue, func.count())
        .where(Shard.state == ShardState.READY, Shard.run_after <= func.clock_timestamp())
        .group_by(Shard.queue)
    )
    return {Queue(queue): count for queue, count in rows.all()}
