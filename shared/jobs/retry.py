"""Trying an ended job's failed items again, in place: their slices' shards go back, and with them what they counted.

Of a slice in which an item had an error, the extraction shards of the modalities with errors run again, its fusion,
and the training, prediction or indexing behind it; what was extracted without errors stays. Afterwards counters equal
rows, as if those shards had never run.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from shared.errors import ConflictError
from shared.jobs import outputs
from shared.jobs.models import ItemError, Job, JobSource, JobStage, Shard
from shared.jobs.registry import find_model, is_read
from shared.jobs.repository import find_features
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.jobs.transitions import (
    add_event,
    end_job,
    fair_tags,
    forget_item_errors,
    set_deadline,
    set_status,
    too_many_failed,
)
from shared.queues import READING, Modality, Stage
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


def retry(session: Session, job: Job, timeout_seconds: int | None = None) -> None:
    """Puts back what failed of a job that has ended, with so much time from now on; `job` is locked.

    If its deadline came while its last shards ended, nothing is left to do, and it succeeds at once.

    Raises ConflictError (`job_not_finished`, `job_cancelled`, `job_of_batch`, `nothing_to_retry`, `job_in_use`,
    `features_changed`), and NotFoundError (`features_not_found`, `model_not_found`) if what the job read is gone.
    """
    _check_ended(job)
    _check_sources(session, job)
    faults = _faults(session, job)
    shards = _to_reset(session, job, faults)
    complete = job.status == JobStatus.FAILED and job.items_succeeded + job.items_partial > 0
    if not shards and not complete:
        raise ConflictError(f"Nothing of the job {job.id!r} failed that could be tried again.", code="nothing_to_retry")
    _check_training(job, shards)
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
    set_deadline(job, timeout_seconds)
    if not shards:
        end_job(session, job)


def _check_ended(job: Job) -> None:
    if job.status == JobStatus.CANCELLED:
        raise ConflictError(f"The job {job.id!r} was cancelled; create a new one.", code="job_cancelled")
    if job.status not in ENDED_JOBS:
        raise ConflictError(f"The job {job.id!r} is {job.status}; it has not ended.", code="job_not_finished")
    if "batch" in job.request:
        message = f"The job {job.id!r} answers a batch, whose files are final; send what failed as a new batch."
        raise ConflictError(message, code="job_of_batch")
    if job.shards_open:
        message = f"Workers are still letting go of the job {job.id!r}; try again in a moment."
        raise ConflictError(message, code="job_not_finished")


def _check_sources(session: Session, job: Job) -> None:
    """What the job reads is kept from now on; nobody reads what it wrote, and may change."""
    if session.scalar(select(is_read(job.id))):
        message = f"A job that has not ended needs the feature set of the job {job.id!r} as it is."
        raise ConflictError(message, code="job_in_use")
    for id in sorted(session.scalars(select(JobSource.source_id).where(JobSource.job_id == job.id))):
        if id != job.request.get("features"):
            find_model(session, job.tenant, id, lock=True)
            continue
        features = find_features(session, job.tenant, id, lock=True)
        if sum(part.rows for part in outputs.parts(session, features.id)) != job.items_total:
            message = f"The feature set of the job {id!r} has changed since; create a new job."
            raise ConflictError(message, code="features_changed")


def _check_training(job: Job, shards: Sequence[_Ended]) -> None:
    """Too many items failed, and none of them is tried again: it would train as if nothing had been wrong."""
    stages = {shard.stage for shard in shards}
    if Stage.FINE_TUNE in stages and Stage.FUSION not in stages and too_many_failed(job):
        message = (
            f"{job.items_failed} of {job.items_total} items of the job {job.id!r} failed, and none can be tried again: "
            "create a new job without them, or with a larger max_failed_fraction."
        )
        raise ConflictError(message, code="nothing_to_retry")


def _faults(session: Session, job: Job) -> set[tuple[str, int]]:
    """(modality, slice) of every item error that a shard reported; modality '' is a whole item."""
    found = select(ItemError.modality, ItemError.shard_index).where(
        ItemError.job_id == job.id, ItemError.shard_index.is_not(None)
    )
    return {(modality, index) for modality, index in session.execute(found.distinct()) if index is not None}


def _to_reset(session: Session, job: Job, faults: set[tuple[str, int]]) -> list[_Ended]:
    """What failed or was cancelled, the extraction of faulty modalities, and what stands on the slices concerned."""
    columns = [getattr(Shard, name) for name in _Ended.__dataclass_fields__]
    found = select(*columns).where(Shard.job_id == job.id).order_by(Shard.stage, Shard.index).with_for_update()
    rows = [_Ended(*row) for row in session.execute(found)]
    chosen = {r.id for r in rows if r.state in _BROKEN or (r.stage, r.index) in faults}
    per_slice = (*_EXTRACTION, Stage.FUSION)
    slices = {r.index for r in rows if r.id in chosen and r.stage in per_slice} | {index for _, index in faults}
    behind = (Stage.FUSION, *READING)
    return [
        r
        for r in rows
        if r.id in chosen or (r.stage in behind and r.index in slices) or (r.stage == Stage.FINE_TUNE and slices)
    ]


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
    vtimes: dict[int, float] = {}
    for queue in sorted(ready):
        tags = fair_tags(session, queue, job.tenant, [shard.cost for shard in ready[queue]])
        vtimes.update(zip((shard.id for shard in ready[queue]), tags, strict=True))
    ids = [shard.id for shard in shards]
    session.execute(
        _RESET,
        {"ids": ids, "waiting": [waiting[id] for id in ids], "vtimes": [vtimes.get(id, 0.0) for id in ids]},
    )


_RESET = text("""
    UPDATE shards SET
        state = CASE WHEN new.waiting_on > 0 THEN 'blocked' ELSE 'ready' END,
        waiting_on = new.waiting_on, vtime = new.vtime, ready_at = clock_timestamp(), run_after = clock_timestamp(),
        attempts = 0, early_deaths = 0, isolated = false, strikes = '{}', probe = NULL, worker = NULL,
        started_at = NULL, finished_at = NULL, error_code = NULL, error_message = NULL,
        checkpoints = '{}', result = '{}', result_key = NULL, result_sha256 = NULL, result_bytes = NULL
    FROM unnest(cast(:ids AS bigint[]), cast(:waiting AS integer[]), cast(:vtimes AS double precision[]))
         AS new (id, waiting_on, vtime)
    WHERE shards.id = new.id
""")


def _waiting(shards: Iterable[_Ended]) -> dict[int, int]:
    """For each shard, on how many of the others it waits."""
    shards = list(shards)
    fits = {s.spec["modality"] for s in shards if s.stage == Stage.FIT}
    extracted = Counter(s.index for s in shards if s.stage in _EXTRACTION)
    fused = Counter(s.index for s in shards if s.stage == Stage.FUSION)
    on: dict[str, Callable[[_Ended], int]] = {
        Stage.FUSION: lambda s: extracted[s.index],
        **dict.fromkeys(READING, lambda s: fused[s.index]),
        Stage.FINE_TUNE: lambda s: fused.total(),  # noqa: ARG005
        **dict.fromkeys(_EXTRACTION, lambda s: int(s.stage in fits)),
    }
    return {s.id: on[s.stage](s) if s.stage in on else 0 for s in shards}
