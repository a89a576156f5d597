"""Deleted jobs go for good, and what is past its retention is deleted."""

from datetime import datetime, timedelta

from sqlalchemy import delete, exists, select, text, update
from sqlalchemy.orm import Session

from services.dispatcher.steps.context import SweepContext
from shared.errors import ConflictError, NotFoundError
from shared.jobs.files import delete_file
from shared.jobs.models import Event, File, IndexedItem, ItemError, Job, JobFile, Model, Shard, Worker
from shared.jobs.registry import is_needed
from shared.jobs.states import ENDED_JOBS
from shared.storage import keys
from shared.storage.objects import ObjectStore

#: Jobs or files removed in one sweep, and rows in one transaction.
MOST = 100
ROWS = 10_000

#: A worker that was not heard from for so long is gone.
SILENCE = timedelta(minutes=10)


def delete_jobs(context: SweepContext, now: datetime) -> int:  # noqa: ARG001  # deleted is deleted
    """Removes deleted jobs that nothing works on any more: their objects, then their rows, the job's own last, so that
    whatever is left by a crash is found again. Two at once: each deletes what the other left, which is no error."""
    with context.sessions() as session:
        gone = Job.deleted_at.is_not(None) & Job.status.in_(ENDED_JOBS) & (Job.shards_open == 0)
        ids = session.scalars(select(Job.id).where(gone).order_by(Job.deleted_at).limit(MOST)).all()
        models = session.execute(select(Model.job_id, Model.id).where(Model.job_id.in_(ids))).all()
    for id in ids:
        prefixes = [keys.job_prefix(id), *(keys.model_prefix(model) for job, model in models if job == id)]
        for prefix in prefixes:
            _delete_objects(context.store, prefix)
        _delete_rows(context, id)
    return len(ids)


def retain_jobs(context: SweepContext, now: datetime) -> int:
    """Deletes ended jobs that are past their retention. Two at once: SKIP LOCKED."""
    old = Job.finished_at < now - timedelta(days=context.settings.engine.retention_days)
    chosen = (
        select(Job.id)
        .where(old, Job.status.in_(ENDED_JOBS), Job.deleted_at.is_(None), ~is_needed(Job.id))
        .order_by(Job.finished_at)
        .limit(MOST)
        .with_for_update(skip_locked=True)
    )
    with context.sessions.begin() as session:
        ids = session.scalars(chosen).all()
        # A job may have come to need one while it was being locked: looked at again, now that none can.
        statement = update(Job).where(Job.id.in_(ids), ~is_needed(Job.id)).values(deleted_at=now, idempotency_key=None)
        return len(session.scalars(statement.returning(Job.id)).all())


def retain_files(context: SweepContext, now: datetime) -> int:
    """Deletes files that are past their retention and that no job still kept has read.

    Two at once: the second finds no such file, or the first one's row lock.
    """
    old = File.created_at < now - timedelta(days=context.settings.engine.retention_days)
    with context.sessions() as session:
        unused = old & ~exists().where(JobFile.file_id == File.id)
        found = session.execute(select(File.tenant, File.id).where(unused).order_by(File.id).limit(MOST)).all()
    return sum(_delete_file(context, tenant, id) for tenant, id in found)


def forget_workers(context: SweepContext, now: datetime) -> int:
    """Removes the rows of workers that are gone. Two at once: one of them finds nothing."""
    with context.sessions.begin() as session:
        statement = delete(Worker).where(Worker.last_seen_at < now - SILENCE)
        return len(session.scalars(statement.returning(Worker.id)).all())


def _delete_objects(store: ObjectStore, prefix: str) -> None:
    store.delete(found.key for found in store.list(prefix))


def _delete_rows(context: SweepContext, job_id: str) -> None:
    # In chunks: one cascade over millions of rows would run into the time limit of a statement, again and again.
    for table in (ItemError, Event, IndexedItem, Shard):
        while True:
            with context.sessions.begin() as session:
                if _delete_chunk(session, table.__tablename__, job_id) < ROWS:
                    break
    with context.sessions.begin() as session:
        session.execute(delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None)))


def _delete_chunk(session: Session, table: str, job_id: str) -> int:
    statement = text(f"""
        WITH gone AS (
            DELETE FROM {table} WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM {table} WHERE job_id = :job_id LIMIT :rows FOR UPDATE SKIP LOCKED
            )) RETURNING 1
        ) SELECT count(*) FROM gone
    """)
    return int(session.execute(statement, {"job_id": job_id, "rows": ROWS}).scalar_one())


def _delete_file(context: SweepContext, tenant: str, id: str) -> bool:
    try:
        with context.sessions.begin() as session:
            key = delete_file(session, tenant, id)
    except (ConflictError, NotFoundError):
        return False  # a job has come to need it, or another dispatcher was quicker
    if key is not None:
        context.store.delete([key])
    return True
