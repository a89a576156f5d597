"""Making and watching jobs without a gateway: for tests of the engine and the workers."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import select

from shared.catalog import load_catalog
from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.layout import lay_out
from shared.jobs.models import ItemError, Job
from shared.jobs.states import ENDED_JOBS
from shared.planning import plan_inline
from shared.requests import JobRequest
from shared.settings import Settings
from shared.storage.objects import ObjectStore

T = TypeVar("T")


def submit(
    settings: Settings, sessions: Sessions, store: ObjectStore, request: Mapping[str, Any], tenant: str = "default"
) -> str:
    """Plans an inline request (of type features, unless it says another) and lays it out; returns the job's id."""
    validated: JobRequest = TypeAdapter(JobRequest).validate_python(request)
    job_id = new_id("job")
    plan = plan_inline(
        store,
        job_id,
        validated,
        catalog=load_catalog(settings.encoders_file),
        limits=settings.limits,
        fetching=settings.fetching,
        resolve_files=lambda ids: {},  # noqa: ARG005
    )
    with sessions.begin() as session:
        stored = validated.model_dump(mode="json", exclude={"items"})
        job = Job(id=job_id, tenant=tenant, type=validated.type, request=stored, request_sha256="")
        session.add(job)
        session.flush()
        session.refresh(job)
        lay_out(session, job, plan)
    return job_id


def wait_for(condition: Callable[[], T | None], *, seconds: float = 60.0, what: str = "it") -> T:
    """Polls until `condition` gives something true. Raises TimeoutError, naming `what`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)
    return value


def wait_for_end(sessions: Sessions, job_id: str, *, seconds: float = 60.0) -> Job:
    """The job's row once it has ended."""

    def ended() -> Job | None:
        with sessions() as session:
            job = session.get_one(Job, job_id)
            return job if job.status in ENDED_JOBS else None

    return wait_for(ended, seconds=seconds, what=f"the end of {job_id}")


def item_errors(sessions: Sessions, job_id: str) -> Sequence[ItemError]:
    """What was wrong with the job's items, in their order."""
    with sessions() as session:
        return session.scalars(
            select(ItemError).where(ItemError.job_id == job_id).order_by(ItemError.item_index, ItemError.modality)
        ).all()
