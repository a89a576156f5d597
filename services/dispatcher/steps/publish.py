"""The list of a finished feature set's parts, for those who read the bucket and not the interface."""

import json
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.dispatcher.steps.context import SweepContext
from shared.jobs import outputs
from shared.jobs.models import Job
from shared.schemas import JobStatus, JobType
from shared.storage import keys

#: Jobs published in one sweep.
MOST = 100


def publish(context: SweepContext, now: datetime) -> int:
    """Writes `manifest.json` beside the parts of jobs that have succeeded.

    Two at once: SKIP LOCKED gives each job to one of them. Its row stays locked while the object is written, so that a
    retry of its failed items cannot come between and be followed by the older list.
    """
    for published in range(MOST):
        with context.sessions.begin() as session:
            job = session.scalar(
                select(Job)
                .where(Job.status == JobStatus.SUCCEEDED, Job.published_at.is_(None), Job.deleted_at.is_(None))
                .order_by(Job.finished_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if job is None:
                return published
            key = keys.prediction_manifest(job.id) if job.type == JobType.PREDICT else keys.feature_manifest(job.id)
            context.store.put(key, _manifest(session, job), "application/json")
            if job.type == JobType.INDEX:  # so that the planner of searches knows how large it is
                session.execute(text("ANALYZE indexed_items"))
            job.published_at = now
    return MOST


def _manifest(session: Session, job: Job) -> bytes:
    parts = outputs.parts(session, job.id, stage=outputs.result_stage(job))
    content = {
        "object": "predictions" if job.type == JobType.PREDICT else "feature_set",
        "job_id": job.id,
        "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "items": {
            "total": job.items_total,
            "succeeded": job.items_succeeded,
            "partial": job.items_partial,
            "failed": job.items_failed,
        },
        "rows": sum(part.rows for part in parts),
        "schema": job.schema,
        "request": job.request,
        "metadata": job.metadata_,
        "parts": [part.model_dump(exclude={"url"}) for part in parts],
    }
    return json.dumps(content, ensure_ascii=False).encode()
