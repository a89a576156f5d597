"""What must hold after any run, however cruel: counters equal rows, everything ended, every named object is there.

Each function returns its findings in words, none if all is well.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from shared.db import Sessions
from shared.errors import NotFoundError
from shared.jobs.models import Blob, CacheSegment, ItemError, Job, JobStage, Model, Shard
from shared.jobs.states import ENDED_JOBS, ENDED_SHARDS, ShardState
from shared.queues import READING, Stage
from shared.schemas import JobStatus, JobType
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.worker.slices import read_slice


def wrong_counters(sessions: Sessions) -> list[str]:
    """Counters of jobs and stages that differ from the shards' rows; states that contradict each other.

    Not of deleted jobs: their rows go one after the other.
    """
    with sessions() as session:
        jobs = session.scalars(select(Job).where(Job.deleted_at.is_(None)))
        return [f"{job.id}: {words}" for job in jobs for words in _of_job(session, job)]


def unended(sessions: Sessions) -> list[str]:
    """Jobs and shards that have not ended."""
    with sessions() as session:
        jobs = session.execute(select(Job.id, Job.status).where(Job.status.not_in(ENDED_JOBS)))
        shards = session.execute(
            select(Shard.job_id, Shard.stage, Shard.index, Shard.state).where(Shard.state.not_in(ENDED_SHARDS))
        )
        return [" ".join(map(str, row)) for row in (*jobs, *shards)]


def missing_objects(sessions: Sessions, store: ObjectStore) -> list[str]:
    """Objects that a row names and that are not there, or have another sha256 than the row says."""
    named = named_objects(sessions, store)
    return [words for key, sha256 in named.items() if (words := _check(store, key, sha256))]


def unnamed_objects(sessions: Sessions, store: ObjectStore) -> list[str]:
    """Keys in the bucket that no row names."""
    named = named_objects(sessions, store)
    with sessions() as session:
        plans = _pairs(session, select(Job.id, Job.schema["plan"].as_string()))
    found = (listed.key for prefix in _PREFIXES for listed in store.list(prefix))
    return [key for key in found if key not in named and not _belongs_to_plan(key, plans)]


def named_objects(sessions: Sessions, store: ObjectStore) -> dict[str, str | None]:
    """The keys that rows name, with their sha256 where the row has it. Slices are read for the media they name."""
    with sessions() as session:  # closed before storage is asked: Postgres ends a transaction that idles
        named = _named_by_rows(session)
        specs = session.scalars(select(Shard.spec).where(Shard.stage == Stage.FUSION.value)).all()
    for spec in specs:
        named[spec["slice"]["key"]] = spec["slice"]["sha256"]
        for key in _media_of(store, spec):
            named.setdefault(key, None)
    return named


def _named_by_rows(session: Session) -> dict[str, str | None]:
    named: dict[str, str | None] = {}
    for table_key, sha256 in ((Blob.key, Blob.sha256), (CacheSegment.key, CacheSegment.sha256)):
        named.update(_pairs(session, select(table_key, sha256)))
    results = select(Shard.result_key, Shard.result_sha256).where(Shard.result_key.is_not(None))
    named.update(_pairs(session, results))
    for checkpoints in session.scalars(select(Shard.checkpoints).where(Shard.checkpoints != {})):
        named.update({saved["key"]: saved["sha256"] for saved in checkpoints.values()})
    for spec in session.scalars(select(Model.spec)):
        named.update({file["key"]: file["sha256"] for file in spec["files"].values()})
    for schema in session.scalars(select(Job.schema).where(Job.schema.has_key("splits"))):
        named[schema["splits"]["key"]] = schema["splits"]["sha256"]
    for id, type in session.execute(select(Job.id, Job.type).where(Job.published_at.is_not(None))):
        named[keys.prediction_manifest(id) if type == JobType.PREDICT else keys.feature_manifest(id)] = None
    return named


_PREFIXES = (keys.BLOBS, keys.CACHE, keys.JOBS, keys.MODELS)


def _of_job(session: Session, job: Job) -> Iterable[str]:
    shards = session.scalars(select(Shard).where(Shard.job_id == job.id)).all()
    open_shards = sum(shard.state not in ENDED_SHARDS for shard in shards)
    if job.shards_open != open_shards:
        yield f"shards_open is {job.shards_open}, and {open_shards} are"
    if open_shards == 0 and job.status not in ENDED_JOBS:
        yield f"is {job.status} with every shard ended"
    if open_shards and job.status in {JobStatus.SUCCEEDED, JobStatus.CANCELLED}:
        yield f"is {job.status} with {open_shards} shards open"
    for stage in session.scalars(select(JobStage).where(JobStage.job_id == job.id)):
        yield from _of_stage(stage, [shard for shard in shards if shard.stage == stage.stage])
    stages = {shard.stage for shard in shards}
    # Items are counted where they come to an end: by fusion, or, on a feature set of another job, by what reads it.
    counting = {Stage.FUSION} if Stage.FUSION in stages else {Stage.FINE_TUNE, *READING}
    fused = [shard for shard in shards if shard.stage in counting]
    for name in ("succeeded", "partial"):
        counted, summed = getattr(job, f"items_{name}"), sum(shard.result.get(name, 0) for shard in fused)
        if counted != summed:
            yield f"items_{name} is {counted}, and the shards have {summed}"
    if job.status == JobStatus.SUCCEEDED:
        yield from _of_succeeded(session, job)


def _of_stage(stage: JobStage, shards: list[Shard]) -> Iterable[str]:
    states = Counter(shard.state for shard in shards)
    expected = {
        "shards_total": states.total(),
        "shards_done": states[ShardState.DONE],
        "shards_failed": states[ShardState.FAILED],
        "items_done": sum(shard.result.get("items_done", 0) for shard in shards),
        "items_cached": sum(shard.result.get("items_cached", 0) for shard in shards),
    }
    for name, value in expected.items():
        if getattr(stage, name) != value:
            yield f"{stage.stage}: {name} is {getattr(stage, name)}, and the shards have {value}"


def _of_succeeded(session: Session, job: Job) -> Iterable[str]:
    counted = job.items_succeeded + job.items_partial + job.items_failed
    if counted != job.items_total:
        yield f"{counted} items were counted of {job.items_total}"
    whole = session.scalar(
        select(func.count()).select_from(ItemError).where(ItemError.job_id == job.id, ItemError.modality == "")
    )
    if whole != job.items_failed:
        yield f"{job.items_failed} items failed, and {whole} have an error as a whole"


def _pairs(session: Session, query: Select[*tuple[Any, ...]]) -> dict[str, Any]:
    return {row[0]: row[1] for row in session.execute(query)}


def _media_of(store: ObjectStore, spec: Mapping[str, dict[str, str]]) -> set[str]:
    try:
        items = read_slice(store, spec)
    except NotFoundError:
        return set()  # `missing_objects` finds it
    places = [place for item in items for place in (item.image, item.audio) if place is not None]
    return {place.key for place in places if place.key is not None and place.bucket is None}


def _check(store: ObjectStore, key: str, sha256: str | None) -> str | None:
    try:
        data = store.get(key)
    except NotFoundError:
        return f"{key} is not there"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return f"{key} has another sha256 than its row says"
    return None


def _belongs_to_plan(key: str, plans: Mapping[str, str | None]) -> bool:
    """What a job's plan wrote, or read as its inline items, lives as long as the job."""
    parts = key.split("/")
    if parts[0] + "/" != keys.JOBS or parts[1] not in plans:
        return False
    plan = plans[parts[1]]
    return key == keys.inline_items(parts[1]) or (parts[2] == "plan" and plan is not None and plan in key)
