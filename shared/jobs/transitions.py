"""How states change: the steps that the engine's operations are made of. The job's row is locked by the caller."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.jobs.models import Event, ItemError, Job, JobStage, Model, QueueClock, Shard, TenantClock
from shared.jobs.records import ItemFailure, NewModel, StoredObject
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.queues import READING, Modality, Stage
from shared.schemas import JobStatus, JobType

_EXTRACTION = frozenset(m.value for m in Modality)

#: Stages whose failed shard is the end of its job: what comes after needs them, or they are what was asked for.
_INDISPENSABLE = frozenset({Stage.FIT.value, Stage.FINE_TUNE.value, *(stage.value for stage in READING)})


def lock_job(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """The job's row, locked until the transaction ends: whoever changes a job or its counters takes this first.

    None if there is none, or, with `skip_locked`, if somebody else has it.
    """
    return session.scalar(
        select(Job)
        .where(Job.id == job_id)
        .with_for_update(skip_locked=skip_locked)
        .execution_options(populate_existing=True)
    )


def held(session: Session, shard_id: int, token: UUID) -> Shard | None:
    """The shard's row, locked; None if its lease was lost."""
    return session.scalar(
        select(Shard)
        .where(Shard.id == shard_id, Shard.lease_token == token, Shard.state == ShardState.LEASED)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def end_shard(session: Session, job: Job, shard: Shard, state: ShardState) -> None:
    shard.state, shard.finished_at = state, func.clock_timestamp()
    shard.lease_token = shard.lease_expires_at = shard.probe = None
    shard.checkpoints = {}  # the sweep finds the objects
    job.shards_open -= 1
    stage = session.get(JobStage, (job.id, shard.stage), populate_existing=True)
    if stage is not None:
        stage.shards_done += state == ShardState.DONE
        stage.shards_failed += state == ShardState.FAILED
        stage.items_done += shard.result.get("items_done", 0)
        stage.items_cached += shard.result.get("items_cached", 0)
        if stage.shards_done + stage.shards_failed == stage.shards_total:
            stage.finished_at = func.clock_timestamp()
            add_event(session, job.id, "stage.finished", {"stage": shard.stage, "shards_failed": stage.shards_failed})
    if state == ShardState.FAILED:
        add_event(session, job.id, "shard.failed", {**place_of(shard), "code": shard.error_code})
    if job.status == JobStatus.RUNNING:
        _pass_on(session, job, shard, state)
    if job.shards_open == 0:
        end_job(session, job)


def _pass_on(session: Session, job: Job, shard: Shard, state: ShardState) -> None:
    """What the end of a shard means for those that wait for it."""
    if state == ShardState.FAILED and shard.stage in _INDISPENSABLE:
        fail_early(session, job, shard.error_code, shard.error_message)
    elif state == ShardState.FAILED and shard.stage == Stage.FUSION:
        job.items_failed += shard.items
        shard.result = {"failed": shard.items}  # what it counted, for `retry` to take back
        message = f"The {shard.items} items of slice {shard.index} could not be fused: {shard.error_message}"
        lost = ItemFailure(
            shard.index * job.schema["shard_size"], f"slice-{shard.index}", None, "shard_failed", message
        )
        add_item_errors(session, job.id, [lost], shard_index=shard.index)
    elif shard.stage == Stage.FIT:
        _unblock(session, job, (Shard.stage == shard.spec["modality"]))
    elif shard.stage in _EXTRACTION:
        _unblock(session, job, (Shard.stage == Stage.FUSION.value) & (Shard.index == shard.index))
    if shard.stage == Stage.FUSION:
        _fused(session, job, shard)


def _fused(session: Session, job: Job, shard: Shard) -> None:
    """What waits for the features of a slice, or of all of them."""
    if job.type in {JobType.PREDICT, JobType.INDEX}:
        _unblock(session, job, Shard.stage.in_(READING) & (Shard.index == shard.index))
    elif job.type == JobType.FINE_TUNE:
        if too_many_failed(job):
            message = f"{job.items_failed} of {job.items_total} items failed, more than max_failed_fraction allows."
            fail_early(session, job, "too_many_failed_items", f"{message} See the job's errors.")
        else:
            _unblock(session, job, Shard.stage == Stage.FINE_TUNE.value)


def too_many_failed(job: Job) -> bool:
    """Whether a fine_tune job must not train."""
    return bool(job.items_failed > job.request["max_failed_fraction"] * job.items_total)


def _unblock(session: Session, job: Job, which: Any) -> None:
    waiting = session.scalars(
        select(Shard)
        .where(Shard.job_id == job.id, Shard.state == ShardState.BLOCKED, which)
        .order_by(Shard.index)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    free = [shard for shard in waiting if shard.waiting_on == 1]
    for shard in waiting:
        if shard.waiting_on > 1:
            shard.waiting_on -= 1
    make_ready(session, job, free)


def make_ready(session: Session, job: Job, shards: Sequence[Shard]) -> None:
    """Blocked shards that wait for nothing more become ready, with their tags of fairness."""
    if not shards:
        return
    tags = fair_tags(session, shards[0].queue, job.tenant, [shard.cost for shard in shards])
    for shard, vtime in zip(shards, tags, strict=True):
        shard.state, shard.waiting_on, shard.vtime = ShardState.READY, 0, vtime
        shard.ready_at = shard.run_after = func.clock_timestamp()


def fair_tags(session: Session, queue: str, tenant: str, costs: Sequence[float]) -> list[float]:
    """Start-time fair queueing (Goyal, Vin, Cheng 1996): each shard's tag is the later of the queue's virtual time and
    the tenant's last tag, plus its cost."""
    if not costs:
        return []
    session.execute(upsert(TenantClock).values(queue=queue, tenant=tenant, vtime=0.0).on_conflict_do_nothing())
    now = session.scalar(select(QueueClock.vtime).where(QueueClock.queue == queue)) or 0.0
    clock = session.execute(
        select(TenantClock)
        .where(TenantClock.queue == queue, TenantClock.tenant == tenant)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one()
    tags = list(accumulate(costs, initial=max(now, clock.vtime)))[1:]
    clock.vtime = tags[-1]
    return tags


def back_to_ready(shard: Shard, delay_seconds: float) -> None:
    shard.state = ShardState.READY
    shard.lease_token = shard.lease_expires_at = shard.probe = shard.started_at = shard.worker = None
    shard.run_after = func.clock_timestamp() + timedelta(seconds=delay_seconds)


def fail_early(session: Session, job: Job, code: str | None, message: str | None) -> None:
    """A job ends before its shards have: what was not begun is cancelled, what runs is told to stop."""
    job.error_code, job.error_message = code, message
    set_status(session, job, JobStatus.FAILED)
    cancel_waiting(session, job)


def cancel_waiting(session: Session, job: Job) -> None:
    session.flush()
    cancelled = session.execute(
        update(Shard)
        .where(Shard.job_id == job.id, Shard.state.in_([ShardState.READY, ShardState.BLOCKED]))
        .values(state=ShardState.CANCELLED, finished_at=func.clock_timestamp())
        .returning(Shard.id)
        .execution_options(synchronize_session=False)
    ).all()
    job.shards_open -= len(cancelled)


def end_job(session: Session, job: Job) -> None:
    if job.status == JobStatus.CANCELLING:
        set_status(session, job, JobStatus.CANCELLED)
    elif job.status in {JobStatus.QUEUED, JobStatus.PLANNING}:
        plan = session.scalar(select(Shard).where(Shard.job_id == job.id, Shard.stage == Stage.PLAN.value))
        if plan is not None:
            job.error_code, job.error_message = plan.error_code, plan.error_message
        set_status(session, job, JobStatus.FAILED)
    elif job.status == JobStatus.RUNNING:
        if job.items_succeeded + job.items_partial:
            set_status(session, job, JobStatus.SUCCEEDED)
        else:
            job.error_code, job.error_message = "every_item_failed", "No item could be used; see the job's errors."
            set_status(session, job, JobStatus.FAILED)


def set_status(session: Session, job: Job, status: JobStatus) -> None:
    job.status = status
    if status in {JobStatus.PLANNING, JobStatus.RUNNING} and job.started_at is None:
        job.started_at = func.clock_timestamp()
    if status in ENDED_JOBS:
        job.finished_at = func.clock_timestamp()
    data = {"code": job.error_code, "message": job.error_message} if status == JobStatus.FAILED else {}
    add_event(session, job.id, f"job.{status.value}", data)


def set_deadline(job: Job, timeout_seconds: int | None) -> None:
    """Gives a job so much time from now on; None: as long as it takes."""
    job.deadline_at = None if timeout_seconds is None else func.clock_timestamp() + timedelta(seconds=timeout_seconds)


def add_event(session: Session, job_id: str, type: str, data: dict[str, Any]) -> None:
    session.add(Event(job_id=job_id, type=type, data=data))


def place_of(shard: Shard) -> dict[str, Any]:
    return {"stage": shard.stage, "shard": shard.index}


def add_item_errors(session: Session, job_id: str, failures: Iterable[ItemFailure], *, shard_index: int | None) -> None:
    """Writes items' errors in chunks, so that a stream of any length passes through."""
    chunk: list[dict[str, Any]] = []
    for failure in failures:
        chunk.append(
            {
                "job_id": job_id, "item_index": failure.item_index, "modality": failure.modality or "",
                "shard_index": shard_index, "item_id": failure.item_id, "code": failure.code,
                "message": failure.message[:2000].replace("\x00", ""),
            }
        )  # fmt: skip
        if len(chunk) == 1000:
            session.execute(upsert(ItemError).on_conflict_do_nothing(), chunk)
            chunk = []
    if chunk:
        session.execute(upsert(ItemError).on_conflict_do_nothing(), chunk)


def forget_item_errors(session: Session, job_id: str, indices: Sequence[int]) -> None:
    """Drops what was written about the items of these slices: they are being tried again."""
    session.execute(delete(ItemError).where(ItemError.job_id == job_id, ItemError.shard_index.in_(indices)))


def register_model(session: Session, job: Job, model: NewModel, stored: StoredObject) -> None:
    """Puts a model that a job made into the registry."""
    session.add(
        Model(
            id=model.id,
            tenant=job.tenant,
            job_id=job.id,
            kind=model.kind,
            modality=model.modality.value if model.modality else None,
            dimension=model.dimension,
            fingerprint=model.fingerprint,
            key=stored.key,
            sha256=stored.sha256,
            spec=model.spec,
        )
    )
