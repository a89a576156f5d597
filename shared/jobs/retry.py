"""Trying an ended job's failed items again, in place: their slices' shards go back, and with them what they counted.

Of a slice in which an item had an error, the extraction shards of the modalities with errors run again, and its
fusion; what was extracted without errors stays. Afterwards counters equal rows, as if those shards had never run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, BigInteger, any_, func, literal, null, select, update
from sqlalchemy.orm import Session

from shared.errors import ConflictError
from shared.jobs.models import ItemError, Job, JobStage, Shard
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.jobs.transitions import add_event, fair_tags, forget_item_errors, set_status
from shared.queues import Modality, Stage
from shared.schemas import JobStatus

_BROKEN = (ShardState.FAILED, ShardState.CANCELLED)
_EXTRACTION = [m.value for m in Modality]

#: Slices whose errors are dropped by one statement.
_CHUNK = 10_000


@dataclass(frozen=True)
class _Ended:
    """A shard that has ended, without what retrying does not ask for: a job may have 100,000 of them."""

    id: int
    stage: str
    queue: str
    index: int
    state: str
    result: dict[str, int]
    cost: float
    spec: dict[str, Any]


def retry(session: Session, job: Job) -> None:
    """Puts back what failed of a job that has ended; `job` is locked.

    Raises ConflictError: `job_not_finished`, `job_cancelled`, or `nothing_to_retry`.
    """
    _check_ended(job)
    faults = _faults(session, job)
    shards = _to_reset(session, job, faults)
    if not shards:
        raise ConflictError(f"Nothing of the job {job.id!r} failed that could be tried again.", code="nothing_to_retry")
    _subtract(session, job, shards)
    slices = sorted({s.index for s in shards if s.stage == Stage.FUSION})
    for start in range(0, len(slices), _CHUNK):
        forget_item_errors(session, job.id, slices[start : start + _CHUNK])
    _reset(session, job, shards)
    job.shards_open += len(shards)
    job.error_code = job.error_message = job.finished_at = job.published_at = None
    add_event(session, job.id, "job.retried", {"shards": len(shards), "slices": len(slices)})
    unplanned = any(s.stage == Stage.PLAN for s in shards)
    set_status(session, job, JobStatus.QUEUED if unplanned else JobStatus.RUNNING)


def _check_ended(job: Job) -> None:
    if job.status == JobStatus.CANCELLED:
        raise ConflictError(f"The job {job.id!r} was cancelled; create a new one.", code="job_cancelled")
    if job.status not in ENDED_JOBS:
        raise ConflictError(f"The job {job.id!r} is {job.status}; it has not ended.", code="job_not_finished")
    if job.shards_open:
        message = f"Workers are still letting go of the job {job.id!r}; try again in a moment."
        raise ConflictError(message, code="job_not_finished")


def _faults(session: Session, job: Job) -> set[tuple[str, int]]:
    """(modality, slice) of every item error that a shard reported; modality '' is a whole item."""
    found = select(ItemError.modality, ItemError.shard_index).where(
        ItemError.job_id == job.id, ItemError.shard_index.is_not(None)
    )
    return {(modality, index) for modality, index in session.execute(found.distinct()) if index is not None}


def _to_reset(session: Session, job: Job, faults: set[tuple[str, int]]) -> list[_Ended]:
    """What failed or was cancelled, the extraction of faulty modalities, and the fusion of the slices concerned."""
    columns = [getattr(Shard, name) for name in _Ended.__dataclass_fields__]
    found = select(*columns).where(Shard.job_id == job.id).order_by(Shard.stage, Shard.index).with_for_update()
    rows = [_Ended(*row) for row in session.execute(found)]
    chosen = {r.id for r in rows if r.state in _BROKEN or (r.stage, r.index) in faults}
    per_slice = (*_EXTRACTION, Stage.FUSION)
    slices = {r.index for r in rows if r.id in chosen and r.stage in per_slice} | {index for _, index in faults}
    return [r for r in rows if r.id in chosen or (r.stage == Stage.FUSION and r.index in slices)]


def _subtract(session: Session, job: Job, shards: Iterable[_Ended]) -> None:
    """Takes what these shards counted from the job's counters and its stages'."""
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for shard in shards:
        ended[shard.stage][shard.state] += 1
        counted[shard.stage].update({name: count for name, count in shard.result.items() if name != "rows"})
    for stage in session.scalars(select(JobStage).where(JobStage.job_id == job.id, JobStage.stage.in_(ended))):
        stage.shards_done -= ended[stage.stage][ShardState.DONE]
        stage.shards_failed -= ended[stage.stage][ShardState.FAILED]
        stage.items_done -= counted[stage.stage]["items_done"]
        stage.items_cached -= counted[stage.stage]["items_cached"]
        stage.finished_at = None
    items = sum(counted.values(), Counter())
    job.items_succeeded -= items["succeeded"]
    job.items_partial -= items["partial"]
    job.items_failed -= items["failed"]


def _reset(session: Session, job: Job, shards: Sequence[_Ended]) -> None:
    """Makes the shards as new: ready, or blocked on those of them that they need."""
    waiting = _waiting(shards)
    ready: dict[str, list[_Ended]] = defaultdict(list)
    for shard in shards:
        if not waiting[shard.id]:
            ready[shard.queue].append(shard)
    vtimes = {
        shard.id: vtime
        for queue in sorted(ready)
        for shard, vtime in zip(
            ready[queue], fair_tags(session, queue, job.tenant, [s.cost for s in ready[queue]]), strict=True
        )
    }
    session.execute(
        update(Shard)
        .where(Shard.id == any_(literal([s.id for s in shards], ARRAY(BigInteger))))
        .values(
            state=ShardState.READY, ready_at=func.clock_timestamp(), run_after=func.clock_timestamp(),
            attempts=0, early_deaths=0, isolated=False, strikes={}, probe=null(), worker=null(), started_at=null(),
            finished_at=null(), result_key=null(), result_sha256=null(), result_bytes=null(), result={},
            error_code=null(), error_message=null(),
        )
        .execution_options(synchronize_session=False)
    )  # fmt: skip
    session.execute(
        update(Shard),
        [
            {
                "id": s.id,
                "state": ShardState.BLOCKED if waiting[s.id] else ShardState.READY,
                "waiting_on": waiting[s.id],
                "vtime": vtimes.get(s.id, 0.0),
            }
            for s in shards
        ],
    )


def _waiting(shards: Iterable[_Ended]) -> dict[int, int]:
    """For each shard, on how many of the others it waits."""
    shards = list(shards)
    fits = {s.spec["modality"] for s in shards if s.stage == Stage.FIT}
    extracted = Counter(s.index for s in shards if s.stage in _EXTRACTION)
    return {
        s.id: extracted[s.index] if s.stage == Stage.FUSION else int(s.stage in _EXTRACTION and s.stage in fits)
        for s in shards
    }
