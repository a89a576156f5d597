"""The sweep on real Postgres and S3: what it rescues, publishes and deletes, and above all what it leaves alone."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, select, update

from services.dispatcher.metrics import Metrics
from services.dispatcher.steps import cache, deletion, orphans, publish, rescue
from services.dispatcher.steps.context import Run, SweepContext
from services.dispatcher.steps.orphans import OrphanSearch
from services.dispatcher.sweep import housekeeping_steps, tick, urgent_steps
from shared.db import Sessions, make_engine, make_sessions
from shared.ids import new_id
from shared.jobs import engine, files, repository
from shared.jobs.models import (
    Blob,
    CacheEntry,
    CacheSegment,
    Event,
    File,
    ItemError,
    Job,
    JobFile,
    Model,
    Shard,
    Worker,
)
from shared.jobs.records import Finished, Lease, StoredObject
from shared.jobs.retry import retry
from shared.queues import Modality, Queue, Stage
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore, make_store
from shared.testing.jobs import submit

LATER = timedelta(hours=2)


@pytest.fixture
def context(
    settings: Settings, sessions: Sessions, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> SweepContext:
    """A context that hints nobody, on an empty database and bucket."""
    monkeypatch.setattr(engine, "RESTART_GRACE", timedelta(0))
    with sessions.begin() as session:
        for table in (Job, File, Blob, CacheSegment, Worker):
            session.execute(delete(table))
    store.delete([found.key for found in store.list("")])
    return SweepContext(settings, sessions, store, lambda queues: None)


def now() -> datetime:
    return datetime.now(UTC)


def twice_at_once(run: Run, context: SweepContext, at: datetime | None = None) -> int:
    """Two dispatchers do the same at the same moment; what they did together."""
    with ThreadPoolExecutor(2) as threads:
        return sum(threads.map(lambda _: run(context, at or now()), range(2)))


def make_job(context: SweepContext, items: int = 4) -> str:
    """A planned job of texts, two to a shard."""
    request = {
        "items": [{"id": f"item-{i}", "text": "x"} for i in range(items)],
        "encoders": {"image": None, "audio": None},
        "shard_size": 2,
    }
    return submit(context.settings, context.sessions, context.store, request)


def claim(context: SweepContext, queue: Queue, limit: int = 100) -> list[Lease]:
    with context.sessions.begin() as session:
        leases = engine.claim(session, queue, "worker", limit=limit)
        for lease in leases:
            engine.start(session, lease)
    return leases


def write_result(context: SweepContext, lease: Lease) -> StoredObject:
    if lease.stage is Stage.FUSION:
        return context.store.put(keys.feature_part(lease.job_id, lease.index, lease.token), b"part")
    return context.store.put(keys.shard_result(lease.job_id, lease.stage, lease.index, lease.token), b"vectors")


def finish(context: SweepContext, lease: Lease, stored: StoredObject) -> None:
    succeeded = lease.items if lease.stage is Stage.FUSION else 0
    with context.sessions.begin() as session:
        engine.finish(session, [Finished(lease, stored, lease.items, rows=succeeded, succeeded=succeeded)])


def run_jobs(context: SweepContext) -> None:
    """Does what is ready, to the end."""
    for queue in (Queue.TEXT, Queue.FUSION):
        for lease in claim(context, queue):
            finish(context, lease, write_result(context, lease))


def keys_in(context: SweepContext, prefix: str = "") -> set[str]:
    return {found.key for found in context.store.list(prefix)}


def get_job(context: SweepContext, id: str) -> Job | None:
    with context.sessions() as session:
        return session.get(Job, id)


def search_orphans(context: SweepContext, at: datetime) -> set[str]:
    """A whole search; what it deleted."""
    before, search = keys_in(context), OrphanSearch()
    for _ in range(20):
        search(context, at)
    return before - keys_in(context)


# Rescue


def test_two_sweeps_rescue_each_shard_once(context: SweepContext) -> None:
    make_job(context, items=40)
    leases = claim(context, Queue.TEXT)
    with context.sessions.begin() as session:
        engine.abandon(session, [(lease.shard_id, lease.token) for lease in leases])
    assert len(leases) == 20
    assert twice_at_once(rescue.rescue, context) == 20
    with context.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Shard).where(Shard.state == "leased")) == 0
        rescued = session.scalar(select(func.count()).select_from(Event).where(Event.type == "shard.rescued"))
        assert rescued == 20


def test_two_sweeps_end_each_overdue_job_once(context: SweepContext) -> None:
    ids = [make_job(context) for _ in range(12)]
    in_time, cancelling, *overdue = ids
    with context.sessions.begin() as session:
        session.execute(update(Job).values(deadline_at=now() - LATER))
        session.get_one(Job, in_time).deadline_at = now() + LATER
    assert cancelling in {lease.job_id for lease in claim(context, Queue.TEXT)}
    with context.sessions.begin() as session:
        repository.cancel(session, "default", cancelling)
    assert twice_at_once(rescue.end_overdue, context) == len(overdue)
    statuses = {id: job.status for id in ids if (job := get_job(context, id)) is not None}
    assert statuses == {**dict.fromkeys(overdue, "failed"), in_time: "running", cancelling: "cancelling"}
    with context.sessions() as session:
        failed = select(func.count()).select_from(Event).where(Event.type == "job.failed")
        assert session.scalar(failed.where(Event.data["code"].as_string() == "deadline_exceeded")) == len(overdue)


def test_queues_with_ready_shards_are_hinted(context: SweepContext) -> None:
    hinted: list[Queue] = []

    def hint(queues: Iterable[Queue]) -> None:
        hinted.extend(queues)

    listening = replace(context, hint=hint)
    assert rescue.hint(listening, now()) == 0
    make_job(context)
    assert rescue.hint(listening, now()) == 1
    assert hinted == [Queue.TEXT]


# Publishing


def test_shards_that_wait_for_newer_workers_are_counted_and_hinted(context: SweepContext) -> None:
    hinted: list[Queue] = []
    listening = replace(context, hint=hinted.extend)
    make_job(context)
    with context.sessions.begin() as session:
        session.add(Worker(id="old", pool="text", host="h", pid=1, version="1"))
    assert rescue.warn(listening, now()) == 0
    with context.sessions.begin() as session:
        session.execute(update(Shard).where(Shard.stage == Stage.TEXT.value).values(protocol=2))
    assert rescue.warn(listening, now()) > 0
    rescue.hint(listening, now())
    assert hinted == [Queue.TEXT]  # a new worker may come at any time


def test_two_sweeps_publish_each_job_once(context: SweepContext) -> None:
    ids = [make_job(context) for _ in range(10)]
    running = make_job(context)
    with context.sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id == running).values(run_after=now() + LATER))
    run_jobs(context)
    assert twice_at_once(publish.publish, context) == 10
    assert publish.publish(context, now()) == 0
    for id in ids:
        job = get_job(context, id)
        assert job is not None
        assert job.published_at is not None
        manifest = json.loads(context.store.get(keys.feature_manifest(id)))
        assert manifest["job_id"] == id
        assert (manifest["rows"], manifest["items"]["succeeded"]) == (4, 4)
        assert manifest["schema"]["dimensions"] == {"text": 384, "fused": 384}
        for index, part in enumerate(manifest["parts"]):
            assert set(part) == {"index", "key", "rows", "bytes", "sha256"}
            assert (part["index"], part["rows"], part["bytes"]) == (index, 2, 4)
            assert context.store.get(part["key"]) == b"part"
    assert not context.store.list(keys.feature_manifest(running)) or keys.feature_manifest(running) not in keys_in(
        context
    )


def test_a_retried_job_is_published_again(context: SweepContext) -> None:
    id = make_job(context)
    run_jobs(context)
    publish.publish(context, now())
    before = json.loads(context.store.get(keys.feature_manifest(id)))
    with context.sessions.begin() as session:
        job = repository.find(session, "default", id, lock=True)
        session.add(
            ItemError(job_id=id, item_index=0, modality="", shard_index=0, item_id="item-0", code="c", message="")
        )
        session.flush()
        retry(session, job)
    assert publish.publish(context, now()) == 0
    run_jobs(context)
    assert publish.publish(context, now()) == 1
    after = json.loads(context.store.get(keys.feature_manifest(id)))
    assert after["parts"][0]["key"] != before["parts"][0]["key"]
    assert after["parts"][1] == before["parts"][1]


# Deleting


def delete_job(context: SweepContext, id: str) -> None:
    with context.sessions.begin() as session:
        repository.delete(session, "default", id)


def test_a_deleted_job_goes_with_its_objects_rows_and_models(
    context: SweepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "ROWS", 3)
    gone, kept = make_job(context, items=20), make_job(context)
    run_jobs(context)
    with context.sessions.begin() as session:
        add_model(session, gone, "model-gone")
        add_model(session, kept, "model-kept")
    for id in ("model-gone", "model-kept"):
        context.store.put(keys.model(id, uuid4(), "vectors.safetensors"), b"x")
    publish.publish(context, now())
    delete_job(context, gone)
    before = keys_in(context)
    twice_at_once(deletion.delete_jobs, context)
    assert keys_in(context) == {key for key in before if gone not in key and "model-gone" not in key}
    assert get_job(context, gone) is None
    assert get_job(context, kept) is not None
    with context.sessions() as session:
        for table in (Shard, Event):
            assert set(session.scalars(select(table.job_id))) == {kept}
        assert session.scalars(select(Model.id)).all() == ["model-kept"]


def add_model(session: object, job_id: str, id: str) -> None:
    row = Model(
        id=id, tenant="default", job_id=job_id, kind="fitted_encoder", modality=Modality.TEXT, dimension=2,
        fingerprint="f", key=keys.model(id, UUID(int=1), "vectors.safetensors"), sha256="0" * 64, spec={},
    )  # fmt: skip
    session.add(row)  # type: ignore[attr-defined]  # a Session


def test_a_deleted_job_waits_for_its_workers(context: SweepContext) -> None:
    id = make_job(context)
    [lease, *_] = claim(context, Queue.TEXT, limit=1)
    with context.sessions.begin() as session:
        engine.fail_job(session, lease, "broken", "It broke.")
        session.execute(update(Job).where(Job.id == id).values(shards_open=1))
    delete_job(context, id)
    assert deletion.delete_jobs(context, now()) == 0
    with context.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == id).values(shards_open=0))
    assert deletion.delete_jobs(context, now()) == 1
    assert get_job(context, id) is None


def test_a_crash_between_objects_and_rows_is_made_good(context: SweepContext) -> None:
    id = make_job(context)
    run_jobs(context)
    delete_job(context, id)
    context.store.delete(list(keys_in(context)))
    assert deletion.delete_jobs(context, now()) == 1
    assert get_job(context, id) is None


# Retention


def test_only_ended_jobs_past_their_retention_are_deleted(context: SweepContext) -> None:
    ended = make_job(context)
    run_jobs(context)
    running = make_job(context)
    days = timedelta(days=context.settings.engine.retention_days)
    assert deletion.retain_jobs(context, now() + days - LATER) == 0
    assert twice_at_once(deletion.retain_jobs, context, now() + days + LATER) == 1
    deleted, open_job = get_job(context, ended), get_job(context, running)
    assert deleted is not None
    assert deleted.deleted_at is not None
    assert open_job is not None
    assert open_job.deleted_at is None


def upload(context: SweepContext, content: bytes) -> tuple[str, str]:
    """An uploaded file: its id and its object's key."""
    stored = context.store.put(keys.blob("default", new_id("upload")), content)
    with context.sessions.begin() as session:
        file, key = files.add_file(
            session, tenant="default", stored=stored, content_type="x/y", filename="f", purpose="user_data"
        )
    return file.id, key


def test_files_that_a_kept_job_has_read_are_kept(context: SweepContext) -> None:
    used, unused = upload(context, b"used"), upload(context, b"unused")
    job = make_job(context)
    with context.sessions.begin() as session:
        session.add(JobFile(job_id=job, file_id=used[0]))
    days = timedelta(days=context.settings.engine.retention_days)
    assert deletion.retain_files(context, now() + days - LATER) == 0
    assert twice_at_once(deletion.retain_files, context, now() + days + LATER) == 1
    assert keys_in(context, keys.BLOBS) == {used[1]}
    with context.sessions() as session:
        assert session.scalars(select(File.id)).all() == [used[0]]
        assert session.scalars(select(Blob.key)).all() == [used[1]]
    assert unused[1] not in keys_in(context)


def test_workers_that_fell_silent_are_forgotten(context: SweepContext) -> None:
    with context.sessions.begin() as session:
        for name, silence in (("alive", 60), ("dead", 660)):
            seen = now() - timedelta(seconds=silence)
            session.add(Worker(id=name, pool="text", host="h", pid=1, version="0", last_seen_at=seen))
    assert twice_at_once(deletion.forget_workers, context) == 1
    with context.sessions() as session:
        assert session.scalars(select(Worker.id)).all() == ["alive"]


# Orphans


def test_orphans_go_and_what_a_row_names_stays(context: SweepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "PAGE", 4)
    store, token = context.store, uuid4()
    job = make_job(context)
    run_jobs(context)
    publish.publish(context, now())
    with context.sessions() as session:
        plan = UUID(session.get_one(Job, job).schema["plan"])
    store.put(keys.inline_items(job), b"x")
    store.put(keys.repacked(job, plan), b"x")
    store.put(keys.media_pack(job, 0, plan), b"x")
    upload(context, b"x")
    model, segment = keys.model("model-1", uuid4(), "a"), keys.cache_segment("default", "f" * 64, uuid4())
    store.put(model, b"x")
    store.put(model.removesuffix("a") + "b", b"x")
    store.put(segment, b"x")
    store.put(keys.tenant_imports("default") + "manifest.jsonl", b"x")
    with context.sessions.begin() as session:
        add_model(session, job, "model-1")
        session.flush()
        session.execute(update(Model).values(key=model))
        session.add(CacheSegment(key=segment, tenant="default", sha256="0" * 64, bytes=1))
    named = keys_in(context)
    lost = {
        keys.shard_result(job, Stage.TEXT, 0, token),
        keys.feature_part(job, 1, token),
        keys.item_slice(job, 0, token),
        keys.repacked(job, token),
        keys.item_slice("job-gone", 0, token),
        keys.inline_items("job-gone"),
        keys.blob("default", new_id("upload")),
        keys.cache_segment("default", "f" * 64, token),
        keys.model("model-1", token, "a"),
        keys.model("model-gone", token, "a"),
    }
    for key in lost:
        store.put(key, b"x")
    assert search_orphans(context, now()) == set()  # all of them are young
    assert search_orphans(context, now() + LATER) == lost
    assert keys_in(context) == named


def test_objects_of_shards_that_run_are_no_orphans(context: SweepContext) -> None:
    """An hour of planning or fitting writes objects long before a row names them; the lease speaks for them."""
    make_job(context)
    [lease, *_] = claim(context, Queue.TEXT, limit=1)
    result = write_result(context, lease)
    others = {
        keys.item_slice(lease.job_id, 7, lease.token), keys.media_pack(lease.job_id, 0, lease.token),
        keys.model("model-new", lease.token, "a"), keys.cache_segment("default", "f" * 64, lease.token),
    }  # fmt: skip
    for key in others:
        context.store.put(key, b"x")
    assert search_orphans(context, now() + LATER) == set()
    finish(context, lease, result)
    assert search_orphans(context, now() + LATER) == others


def test_a_search_starts_at_most_once_an_hour(context: SweepContext) -> None:
    search, start = OrphanSearch(), now() + LATER
    for _ in range(5):
        search(context, start)
    context.store.put(keys.inline_items("job-gone"), b"x")
    assert sum(search(context, start + timedelta(minutes=m)) for m in range(0, 59, 10)) == 0
    assert search(context, start + timedelta(minutes=61)) == 1


# The feature cache


def test_least_recently_used_segments_go_first_and_by_tenant(context: SweepContext) -> None:
    limited = replace(
        context, settings=context.settings.model_copy(
            update={"engine": context.settings.engine.model_copy(update={"cache_bytes": 250})}
        )
    )  # fmt: skip
    names = {}
    with context.sessions.begin() as session:
        for tenant, ages in (("a", [1, 4, 2, 3]), ("b", [50, 60])):
            for age in ages:
                key = keys.cache_segment(tenant, "f" * 64, uuid4())
                names[key] = f"{tenant}{age}"
                used = now() - timedelta(hours=age)
                session.add(CacheSegment(key=key, tenant=tenant, sha256="0" * 64, bytes=100, used_at=used))
                session.flush()
                session.add(CacheEntry(tenant=tenant, fingerprint="f", content_sha256=f"c{age}", segment=key, row=0))
    for key in names:
        context.store.put(key, b"x")
    assert twice_at_once(cache.evict, limited) == 2
    assert {names[key] for key in keys_in(context, keys.CACHE)} == {"a1", "a2", "b50", "b60"}
    with context.sessions() as session:
        assert set(session.scalars(select(CacheEntry.content_sha256))) == {"c1", "c2", "c50", "c60"}
    assert cache.evict(limited, now()) == 0


# Outages


def test_an_outage_is_waited_out(context: SweepContext, settings: Settings) -> None:
    make_job(context)
    run_jobs(context)
    elsewhere = make_engine("postgresql+psycopg://nobody:nothing@127.0.0.1:9/none")
    no_postgres = replace(context, sessions=make_sessions(elsewhere))
    no_s3 = replace(context, store=make_store(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})))
    assert tick(no_postgres, urgent_steps(), now(), Metrics()) == {}
    steps = housekeeping_steps()
    assert "publish" not in tick(no_s3, steps, now(), Metrics())
    urgent = {"rescue": 0, "end_overdue": 0, "hint": 0, "warn": 0}
    assert tick(no_s3, urgent_steps(), now(), Metrics()) == urgent
    assert tick(context, steps, now(), Metrics())["publish"] == 1
    elsewhere.dispose()


def test_steps_run_when_they_are_due(context: SweepContext) -> None:
    steps, start = housekeeping_steps(), now()
    assert "retain_jobs" in tick(context, steps, start, Metrics())
    often = {"publish", "batches", "delete_jobs", "orphans"}
    assert set(tick(context, steps, start + timedelta(seconds=2), Metrics())) == often
    assert "retain_jobs" in tick(context, steps, start + timedelta(seconds=61), Metrics())


def test_ended_jobs_stay_as_they_are(context: SweepContext) -> None:
    """A sweep over a job that has ended changes nothing but its publication."""
    id = make_job(context)
    run_jobs(context)
    for _ in range(3):
        tick(context, [*urgent_steps(), *housekeeping_steps()], now(), Metrics())
    job = get_job(context, id)
    assert job is not None
    assert (job.status, job.items_succeeded, job.deleted_at) == (JobStatus.SUCCEEDED, 4, None)
