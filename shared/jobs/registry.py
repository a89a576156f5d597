"""The models that a tenant's jobs made, and the workers that were heard from."""

from collections import defaultdict
from datetime import timedelta
from typing import Any, Literal, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared import schemas
from shared.jobs.models import Model, Shard, Worker
from shared.jobs.states import ShardState
from shared.queues import Modality

#: Workers that said nothing for longer are not shown.
_SEEN_WITHIN = timedelta(seconds=30)


def fitted_models(session: Session, tenant: str, id: str | None = None) -> list[schemas.ModelEntry]:
    """The tenant's models, newest first; only the one with this id if it is given."""
    query = select(Model).where(Model.tenant == tenant).order_by(Model.id.desc())
    rows = session.scalars(query if id is None else query.where(Model.id == id))
    return [
        schemas.ModelEntry(
            id=row.id,
            created=int(row.created_at.timestamp()),
            owned_by=tenant,
            kind="fitted_encoder",
            modality=Modality(row.modality),
            dimension=row.dimension,
            loader=str(row.spec.get("loader", "")),
            revision=row.fingerprint,
            job_id=row.job_id,
        )
        for row in rows
    ]


def live_workers(session: Session, tenant: str) -> list[schemas.WorkerEntry]:
    """The workers seen of late; of the shards they hold only the tenant's are named."""
    shards: dict[str, list[dict[str, Any]]] = defaultdict(list)
    held = select(Shard).where(Shard.state == ShardState.LEASED, Shard.tenant == tenant).order_by(Shard.id)
    for shard in session.scalars(held):
        since = shard.started_at.timestamp() if shard.started_at else None
        place = {"job_id": shard.job_id, "stage": shard.stage, "shard": shard.index, "started_at": since}
        shards[shard.worker or ""].append(place)
    rows = session.scalars(
        select(Worker).where(Worker.last_seen_at > func.clock_timestamp() - _SEEN_WITHIN).order_by(Worker.id)
    )
    return [
        schemas.WorkerEntry(
            id=row.id,
            pool=row.pool,
            host=row.host,
            pid=row.pid,
            version=row.version,
            started_at=row.started_at.timestamp(),
            last_seen_at=row.last_seen_at.timestamp(),
            state=cast(Literal["idle", "busy", "draining"], row.state),
            loaded_models=row.loaded_models,
            current_shards=shards[row.id],
        )
        for row in rows
    ]
