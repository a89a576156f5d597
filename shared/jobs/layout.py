"""From a plan to a job's shards: extraction by slice and modality, fusion behind them, a fit before all if wanted,
training behind all, or prediction or indexing behind each; on a feature set that exists, these alone."""

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from shared.fine_tuning import TrainEncoder
from shared.jobs import outputs
from shared.jobs.models import Job, JobStage, Shard
from shared.jobs.protocol import protocol_of
from shared.jobs.records import Lease, Plan, Slice
from shared.jobs.states import ShardState
from shared.jobs.transitions import (
    add_event,
    add_item_errors,
    end_job,
    end_shard,
    fair_tags,
    held,
    lock_job,
    set_status,
)
from shared.queues import Modality, Stage, queue_of
from shared.schemas import JobStatus, JobType


def finish_plan(session: Session, lease: Lease, plan: Plan) -> bool:
    """Ends a plan shard and puts the job's shards in their place. False: the lease was lost, nothing is written."""
    job = lock_job(session, lease.job_id)
    shard = held(session, lease.shard_id, lease.token)
    if job is None or shard is None:
        return False
    if job.status not in {JobStatus.QUEUED, JobStatus.PLANNING}:
        end_shard(session, job, shard, ShardState.CANCELLED)  # or a retry would find the job planned, without shards
        return True
    lay_out(session, job, plan)
    shard.result = {"rows": plan.items_total}
    end_shard(session, job, shard, ShardState.DONE)
    return True


def lay_out(session: Session, job: Job, plan: Plan) -> None:
    """Inserts the shards of a plan and starts the job.

    `job` is locked or new. The caller ends (or never had) the plan shard.
    """
    job.schema, job.items_total, job.items_failed = plan.schema, plan.items_total, plan.failure_count
    if plan.input_bytes is not None:
        job.input_bytes = plan.input_bytes
    add_item_errors(session, job.id, plan.failures, shard_index=None)
    rows = [row for part in plan.slices for row in _shards_of(job, part)]
    fits = sorted(m for m in job.schema["fitted"] if any(part.modalities.get(Modality(m)) for part in plan.slices))
    rows += [_fit_shard(job, Modality(m), plan) for m in fits]
    if job.type == JobType.FINE_TUNE and rows:
        items = sum(part.items for part in plan.slices)
        rows.append(_row(job, Stage.FINE_TUNE, 0, items, {}, waiting_on=len(plan.slices)))
        if job.request.get("train_encoder", TrainEncoder.FROZEN) != TrainEncoder.FROZEN:
            ids = {m: encoder["id"] for m, encoder in job.schema["encoders"].items()}
            trained = {m: ids.pop(m) for m in fits}
            add_event(session, job.id, "training.encoders", {"trained": trained, "frozen": ids})
    _insert(session, job, rows)


def lay_out_on_features(session: Session, job: Job, features: Job) -> None:
    """Inserts the shards of a job that trains on, predicts from or indexes the feature set of a job that succeeded."""
    parts = outputs.parts(session, features.id)
    job.schema, job.items_total = features.schema, sum(part.rows for part in parts)
    stage, spec = _stage_behind(job), {"features": features.id}
    if stage is None:
        rows = [_row(job, Stage.FINE_TUNE, 0, job.items_total, spec)]
    else:
        rows = [_row(job, stage, part.index, part.rows, spec, affinity=job.request["model"]) for part in parts]
    _insert(session, job, rows)


def _insert(session: Session, job: Job, rows: list[dict[str, Any]]) -> None:
    stages: dict[str, JobStage] = {}
    for row in rows:
        stage = stages.setdefault(
            row["stage"], JobStage(job_id=job.id, stage=row["stage"], shards_total=0, items_total=0)
        )
        stage.shards_total += 1
        stage.items_total += row["items"]
    session.add_all(stages.values())
    for queue in sorted({row["queue"] for row in rows}):
        ready = [row for row in rows if row["queue"] == queue and row["state"] == ShardState.READY]
        for row, vtime in zip(
            ready, fair_tags(session, queue, job.tenant, [row["cost"] for row in ready]), strict=True
        ):
            row.update(vtime=vtime)
    session.flush()
    for chunk in (rows[i : i + 5000] for i in range(0, len(rows), 5000)):
        session.execute(insert(Shard), [{"vtime": 0.0, **row} for row in chunk])
    job.shards_open += len(rows)
    set_status(session, job, JobStatus.RUNNING)
    if not rows:
        end_job(session, job)


def _shards_of(job: Job, part: Slice) -> list[dict[str, Any]]:
    spec = {"slice": {"key": part.stored.key, "sha256": part.stored.sha256}}
    wanted = [m for m in Modality if m.value in job.schema["encoders"] and part.modalities.get(m)]
    extraction = [
        _row(job, Stage(m.value), part.index, part.modalities[m], spec,
             affinity=job.schema["encoders"][m.value]["id"], waiting_on=int(m.value in job.schema["fitted"]))
        for m in wanted
    ]  # fmt: skip
    fusion = _row(job, Stage.FUSION, part.index, part.items, spec, waiting_on=len(wanted))
    behind = _stage_behind(job)
    if behind is None:
        return [*extraction, fusion]
    model = job.request["model"]
    return [*extraction, fusion, _row(job, behind, part.index, part.items, {}, affinity=model, waiting_on=1)]


def _stage_behind(job: Job) -> Stage | None:
    """What comes after the fusion of each slice."""
    if job.type == JobType.INDEX:
        return Stage.INDEX
    return outputs.result_stage(job) if job.type == JobType.PREDICT else None


def _fit_shard(job: Job, modality: Modality, plan: Plan) -> dict[str, Any]:
    items = sum(part.modalities.get(modality, 0) for part in plan.slices)
    return _row(job, Stage.FIT, list(Modality).index(modality), items, {"modality": modality.value}, modality=modality)


def _row(
    job: Job, stage: Stage, index: int, items: int, spec: dict[str, Any], *,
    affinity: str = "", waiting_on: int = 0, modality: Modality | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "job_id": job.id,
        "tenant": job.tenant,
        "stage": stage.value,
        "queue": queue_of(stage, modality).value,
        "index": index,
        "items": items,
        "spec": spec,
        "affinity": affinity,
        "protocol": protocol_of(stage, job.request),
        "waiting_on": waiting_on,
        "priority": job.priority,
        "cost": float(max(items, 1)),
        "state": ShardState.BLOCKED if waiting_on else ShardState.READY,
    }
