"""Planning on real Postgres and S3: manifests of every kind become slices, and a dispatcher process does it."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, func, select, update

from services.dispatcher.plan import PlanJob
from shared.broker import make_broker
from shared.catalog import load_catalog
from shared.db import Sessions
from shared.errors import ConflictError, JobError, ShardCancelledError
from shared.ids import new_id
from shared.items import PlannedItem
from shared.jobs import engine, files, outputs, repository
from shared.jobs.layout import finish_plan
from shared.jobs.models import Job, JobFile, JobStage, Shard
from shared.jobs.records import Lease, Plan
from shared.jobs.repository import NewJob
from shared.jobs.retry import retry
from shared.queues import Queue
from shared.schemas import FeaturesRequest, JobStatus
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.testing.jobs import wait_for
from shared.testing.planning import media_bytes, read_items
from shared.worker.context import WorkerContext
from shared.worker.control import Control


@pytest.fixture
def context(settings: Settings, sessions: Sessions, store: ObjectStore) -> WorkerContext:
    """A dispatcher's context, on an empty database."""
    with sessions.begin() as session:
        session.execute(delete(Job))
    return WorkerContext(
        settings, sessions, store, make_broker(settings), load_catalog(), Queue.PLAN, "dispatcher-test"
    )


def upload(context: WorkerContext, content: bytes, tenant: str = "default") -> str:
    """An uploaded file's id."""
    stored = context.store.put(keys.blob(tenant, new_id("upload")), content)
    with context.sessions.begin() as session:
        file, _ = files.add_file(
            session, tenant=tenant, stored=stored, content_type="x/y", filename="f", purpose="user_data"
        )
    return file.id


def submit(context: WorkerContext, source: dict[str, str], **request: Any) -> str:
    """A job whose manifest is still to be planned; its id."""
    validated = FeaturesRequest.model_validate({"input": source, "shard_size": 2, **request})
    new = NewJob(
        id=new_id("job"),
        tenant="default",
        request=validated.model_dump(mode="json", exclude={"items"}),
        request_sha256=uuid4().hex,
        file_ids=[source["file_id"]] if "file_id" in source else [],
    )
    with context.sessions.begin() as session:
        job = repository.create(session, new)
        assert job is not None
        repository.queue_plan(session, job)
    return new.id


def claim(context: WorkerContext) -> Lease:
    with context.sessions.begin() as session:
        [lease] = engine.claim(session, Queue.PLAN, context.worker_id)
        engine.start(session, lease)
    return lease


def make_plan(context: WorkerContext, lease: Lease, control: Control | None = None) -> Plan:
    """The handler's three steps."""
    handler, control = PlanJob(context), control or Control(lease.shard_id)
    handler.load(lease, control)
    return handler.store(lease, handler.run(lease, handler.prepare(lease, control), control), control)


def plan(context: WorkerContext, source: dict[str, str], **request: Any) -> tuple[str, list[PlannedItem]]:
    """Submits and plans a job, in the database too; its id and its items."""
    id = submit(context, source, **request)
    lease = claim(context)
    found = make_plan(context, lease)
    with context.sessions.begin() as session:
        assert finish_plan(session, lease, found)
    return id, read_items(context.store, found)


def errors_of(context: WorkerContext, id: str) -> dict[str, list[str]]:
    with context.sessions() as session:
        found: dict[str, list[str]] = {}
        for error in outputs.item_errors(session, id, limit=100):
            found.setdefault(error.item_id, []).append(error.code)
        return found


def lines(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def test_a_manifest_of_files(context: WorkerContext) -> None:
    mine, theirs = upload(context, b"picture"), upload(context, b"secret", tenant="other")
    manifest = upload(
        context,
        lines(
            {"id": "a", "text": "x", "image": mine},
            {"id": "b", "image": theirs},
            {"id": "c", "text": "x", "image": theirs},
            {"id": "a", "text": "again"},
            {"id": "d", "text": "x"},
        )
        + b'{"id": "e"\n',
    )
    id, items = plan(context, {"file_id": manifest})
    assert [(item.index, item.id) for item in items] == [(0, "a"), (2, "c"), (4, "d")]
    assert media_bytes(context.store, items[0].image) == b"picture"
    whole = "no_usable_modality"
    assert errors_of(context, id) == {
        "a": ["duplicate_id"], "b": [whole, "missing_media"], "c": ["missing_media"], "line-6": ["invalid_json"],
    }  # fmt: skip
    with context.sessions() as session:
        job = session.get_one(Job, id)
        assert (job.status, job.items_total, job.items_failed) == (JobStatus.RUNNING, 6, 3)
        assert set(session.scalars(select(JobFile.file_id).where(JobFile.job_id == id))) == {manifest, mine}
        shards = session.execute(
            select(Shard.stage, Shard.index, Shard.items, Shard.state).where(Shard.job_id == id).order_by(Shard.id)
        ).all()
        stages = {stage.stage: stage.shards_total for stage in session.scalars(select(JobStage))}
    assert {tuple(row) for row in shards} == {
        ("plan", 0, 0, "done"), ("text", 0, 1, "ready"), ("text", 1, 1, "ready"), ("text", 2, 1, "ready"),
        ("image", 0, 1, "ready"), ("fusion", 0, 1, "blocked"), ("fusion", 1, 1, "blocked"),
        ("fusion", 2, 1, "blocked"),
    }  # fmt: skip
    assert stages == {"plan": 1, "text": 3, "image": 1, "fusion": 3}
    with pytest.raises(ConflictError), context.sessions.begin() as session:
        files.delete_file(session, "default", mine)


MEDIA = {"img/1.png": b"first picture", "img/2.png": b"second picture" * 1000}
ITEMS = lines(*({"id": str(i), "text": "x", "image": f"img/{i}.png"} for i in (1, 2)))


def packed_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in {**MEDIA, "manifest.jsonl": ITEMS}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def packed_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**MEDIA, "manifest.jsonl": ITEMS}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def packed_parquet() -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"id": ["1", "2"], "text": ["x", "x"], "image": list(MEDIA.values())})
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [packed_tar, packed_zip, packed_parquet])
def test_media_inside_a_manifest_file(context: WorkerContext, pack: Any) -> None:
    _, items = plan(context, {"file_id": upload(context, pack())})
    assert [item.id for item in items] == ["1", "2"]
    if pack is packed_parquet:
        assert items[0].image is not None
        assert items[0].image.data is not None  # small ones travel in the slice
        items, pictures = items[1:], list(MEDIA.values())[1:]
    else:
        pictures = list(MEDIA.values())
    assert [media_bytes(context.store, item.image) for item in items] == pictures


def large_zip() -> bytes:
    """Three members of 8 MiB, stored: more than one part of an upload."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", bytes([i]) * 8 * 1024**2)
    return buffer.getvalue()


def test_a_large_zip_is_repacked_in_parts(context: WorkerContext) -> None:
    _, items = plan(context, {"file_id": upload(context, large_zip())})
    assert [media_bytes(context.store, item.image) for item in items] == [bytes([i]) * 8 * 1024**2 for i in range(3)]


def test_a_zip_that_breaks_late_leaves_nothing_behind(context: WorkerContext) -> None:
    damaged = bytearray(large_zip())
    damaged[20 * 1024**2] ^= 0xFF
    id, threads = submit(context, {"file_id": upload(context, bytes(damaged))}), threading.active_count()
    with pytest.raises(JobError) as caught:
        make_plan(context, claim(context))
    assert caught.value.error_code == "corrupt_archive"
    assert list(context.store.list(keys.job_prefix(id))) == []
    assert threading.active_count() == threads


def test_a_prefix_of_the_platforms_bucket(context: WorkerContext) -> None:
    folder = keys.tenant_imports("default") + "set/"
    for name, data in {**MEDIA, "manifest.jsonl": ITEMS}.items():
        context.store.put(folder + name, data)
    id, items = plan(context, {"s3_prefix": f"s3://{context.settings.s3_bucket}/{folder}"})
    assert [media_bytes(context.store, item.image) for item in items] == list(MEDIA.values())
    with context.sessions() as session:
        assert session.get_one(Job, id).input_bytes == len(ITEMS) + sum(map(len, MEDIA.values()))


def test_items_that_came_in_the_body(context: WorkerContext) -> None:
    id = submit(context, {"file_id": upload(context, b"unused")})
    with context.sessions.begin() as session:
        job = session.get_one(Job, id)
        job.request = {**job.request, "input": None}
    context.store.put(keys.inline_items(id), lines({"id": "a", "text": "x"}))
    assert make_plan(context, claim(context)).items_total == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"s3_prefix": "s3://somewhere-else/x/"}, "prefix_not_allowed"),
        ({"s3_prefix": "s3://{bucket}/imports/other/"}, "prefix_not_allowed"),
        ({"s3_prefix": "s3://{bucket}/imports/default/nothing/"}, "prefix_not_found"),
        ({"file": "\x00binary"}, "unsupported_manifest"),
        ({"file": "\n"}, "empty_manifest"),
    ],
)
def test_what_ends_the_job(context: WorkerContext, source: dict[str, str], code: str) -> None:
    if "file" in source:
        source = {"file_id": upload(context, source["file"].encode())}
    else:
        source = {name: value.format(bucket=context.settings.s3_bucket) for name, value in source.items()}
    submit(context, source)
    with pytest.raises(JobError) as caught:
        make_plan(context, claim(context))
    assert caught.value.error_code == code


def small_zip(*texts: bytes) -> bytes:
    """A zip of texts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, text in enumerate(texts):
            archive.writestr(f"{i}.txt", text)
    return buffer.getvalue()


THREE = lines(*({"id": str(i), "text": "x"} for i in range(3)))


@pytest.mark.parametrize(
    ("limits", "manifest", "code"),
    [
        ({"items": 2}, THREE, "too_many_items"),
        ({"items": 2}, small_zip(b"a", b"b", b"c"), "too_many_items"),
        ({"archive_members": 2}, small_zip(b"a", b"b", b"c"), "archive_too_large"),
        ({"archive_bytes": 1000}, small_zip(bytes(1001)), "archive_too_large"),
        ({"archive_bytes": 50}, gzip.compress(THREE), "archive_too_large"),
        ({"archive_ratio": 10}, small_zip(bytes(17 * 1024**2)), "archive_too_large"),
    ],
    ids=["lines", "members-as-items", "members", "zip-bytes", "gzip-bytes", "ratio"],
)
def test_a_manifest_over_a_limit_fails_its_job(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], manifest: bytes, code: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(context.settings.limits, name, value)
    id = submit(context, {"file_id": upload(context, manifest)})
    lease = claim(context)
    with pytest.raises(JobError) as caught:
        make_plan(context, lease)
    with context.sessions.begin() as session:
        engine.fail_job(session, lease, caught.value.error_code, caught.value.message)
    with context.sessions() as session:
        job = session.get_one(Job, id)
        assert (job.status, job.error_code, job.shards_open) == (JobStatus.FAILED, code, 0)
        assert str(next(iter(limits.values()))) in (job.error_message or ""), "the message says which limit it was"


@pytest.mark.parametrize(
    ("limits", "item", "code"),
    [
        ({"line_bytes": 100}, {"text": "x" * 100}, "invalid_item"),
        ({"text_bytes": 10}, {"text": "x" * 11}, "text_too_large"),
        ({"media_bytes": 10}, {"image": "data:image/png;base64," + "AAAA" * 10}, "media_too_large"),
    ],
)
def test_an_item_over_a_limit_fails_alone(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], item: dict[str, str], code: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(context.settings.limits, name, value)
    manifest = lines({"id": "large", **item}, {"id": "small", "text": "x"})
    id, planned = plan(context, {"file_id": upload(context, manifest)})
    assert [item.id for item in planned] == ["small"]
    found = errors_of(context, id)
    assert code in found.get("large", found.get("line-1", []))


def test_another_tenants_manifest_is_not_found(context: WorkerContext) -> None:
    id = submit(context, {"file_id": upload(context, ITEMS)})
    theirs = upload(context, ITEMS, tenant="other")
    with context.sessions.begin() as session:
        job = session.get_one(Job, id)
        job.request = {**job.request, "input": {"file_id": theirs, "s3_prefix": None}}
    with pytest.raises(JobError) as caught:
        make_plan(context, claim(context))
    assert caught.value.error_code == "file_not_found"


def test_planning_stops_when_the_job_is_cancelled(context: WorkerContext) -> None:
    submit(context, {"file_id": upload(context, ITEMS)})
    lease = claim(context)
    control = Control(lease.shard_id)
    control.cancel()
    with pytest.raises(ShardCancelledError):
        make_plan(context, lease, control)


def test_a_plan_that_comes_after_the_deadline_counts_for_nothing(context: WorkerContext) -> None:
    id = submit(context, {"file_id": upload(context, ITEMS)})
    lease = claim(context)
    late = make_plan(context, lease)
    with context.sessions.begin() as session:
        session.execute(update(Job).values(deadline_at=func.clock_timestamp()))
    with context.sessions.begin() as session:
        assert engine.end_overdue(session)
    with context.sessions.begin() as session:
        assert finish_plan(session, lease, late)
        assert [shard.state for shard in session.scalars(select(Shard))] == ["cancelled"]
    with context.sessions.begin() as session:
        retry(session, repository.find(session, "default", id, lock=True))
    lease = claim(context)
    again = make_plan(context, lease)
    with context.sessions.begin() as session:
        assert finish_plan(session, lease, again)
        assert session.get_one(Job, id).status == JobStatus.RUNNING


def test_a_plan_whose_lease_was_lost_writes_nothing(context: WorkerContext) -> None:
    id = submit(context, {"file_id": upload(context, ITEMS)})
    lost = claim(context)
    first = make_plan(context, lost)
    with context.sessions.begin() as session:
        engine.release(session, lost)
    lease = claim(context)
    second = make_plan(context, lease)
    with context.sessions.begin() as session:
        assert not finish_plan(session, lost, first)
        assert finish_plan(session, lease, second)
        assert session.get_one(Job, id).schema["plan"] == lease.token.hex
    named = {part.stored.key for part in second.slices}
    assert named.isdisjoint(part.stored.key for part in first.slices)


@contextmanager
def dispatcher(environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A dispatcher process; drained at the end."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "services.dispatcher"], env={**os.environ, **environment, "PYTHONPATH": root}, cwd=root
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def test_two_dispatchers_plan_and_rescue(environment: dict[str, str], context: WorkerContext) -> None:
    """Processes side by side: every job is planned once; a dead worker's shard is ready again; both leave with 0."""
    variables = {**environment, "TRIVIUM_SWEEP_SECONDS": "0.2", "TRIVIUM_IDLE_POLL_SECONDS": "0.2"}
    manifest = upload(context, lines(*({"id": str(i), "text": "x"} for i in range(50))))
    ids = [submit(context, {"file_id": manifest}) for _ in range(12)]
    with dispatcher(variables) as one, dispatcher(variables) as two:

        def planned() -> bool:
            with context.sessions() as session:
                return set(session.scalars(select(Job.status))) == {JobStatus.RUNNING}

        wait_for(planned, what="the planning of all jobs")
        with context.sessions.begin() as session:
            [lease] = engine.claim(session, Queue.TEXT, "worker that will die")
            engine.start(session, lease)
            ago = func.clock_timestamp() - timedelta(seconds=1)
            session.execute(update(Shard).where(Shard.id == lease.shard_id).values(lease_expires_at=ago))

        def rescued() -> bool:
            with context.sessions() as session:
                shard = session.get_one(Shard, lease.shard_id)
                return shard.state == "ready" and shard.isolated

        wait_for(rescued, what="the rescue")
        for process in (one, two):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
    with context.sessions() as session:
        counted = dict(session.execute(select(Shard.job_id, func.count()).group_by(Shard.job_id)).all())
    assert counted == dict.fromkeys(ids, 1 + 25 + 25)
