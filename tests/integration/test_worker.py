"""Worker processes on real Postgres, Redis and S3: work, death, drain, poison, and Redis switched off."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sqlalchemy import delete, func, select

from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.models import CacheEntry, Job, Shard, Worker
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import item_errors, submit, wait_for, wait_for_end

DIMENSION = 16


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the deterministic encoders in the catalogue."""
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    file.write_text(
        json.dumps(
            [
                {"id": f"hash-{m}", "modality": m, "dimension": DIMENSION, "loader": "hashing"}
                for m in ("text", "image", "audio")
            ]
        )
    )
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_LEASE_SECONDS": "3",
        "TRIVIUM_RENEW_SECONDS": "0.5",
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
        "TRIVIUM_DECODE_SECONDS": "2",
    }


@contextmanager
def worker(environment: dict[str, str], pool: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process of a pool; drained at the end."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", f"services.{pool}"], env={**os.environ, **environment, "PYTHONPATH": root}, cwd=root
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture(autouse=True)
def _clean(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RESTART_GRACE", engine.RESTART_GRACE * 0)
    with sessions.begin() as session:
        session.execute(delete(Job))
        session.execute(delete(CacheEntry))


def picture(seed: int, size: int = 8) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def request(images: list[bytes], **more: Any) -> dict[str, Any]:
    """A features job of pictures."""
    items = [
        {"id": f"item-{i}", "image": "data:image/png;base64," + base64.b64encode(data).decode(), "label": "x"}
        for i, data in enumerate(images)
    ]
    encoders = {"text": None, "image": "hash-image", "audio": None}
    return {"items": items, "encoders": encoders, "shard_size": 4, **more}


def features(sessions: Sessions, store: ObjectStore, job_id: str) -> dict[str, list[float]]:
    """id → fused vector, from the parts that the rows name."""
    with sessions() as session:
        shards = session.scalars(
            select(Shard).where(Shard.job_id == job_id, Shard.stage == "fusion").order_by(Shard.index)
        ).all()
    rows: dict[str, list[float]] = {}
    for shard in shards:
        assert shard.result_key is not None
        table = pq.read_table(io.BytesIO(store.get(shard.result_key)))
        rows.update(zip(table["id"].to_pylist(), table["fused"].to_pylist(), strict=True))
    return rows


def sweep(sessions: Sessions) -> None:
    """One sweep, as the dispatcher does it."""
    with sessions.begin() as session:
        engine.reclaim_expired(session)


def test_pictures_become_features(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Two pools work a job off; equal pictures are encoded once; a second run comes from the cache."""
    images = [picture(seed % 6) for seed in range(10)]
    with worker(environment, "image"), worker(environment, "fusion"):
        first = submit(settings, sessions, store, request(images))
        job = wait_for_end(sessions, first)
        second = submit(settings, sessions, store, request(images))
        wait_for_end(sessions, second)
        with sessions() as session:
            assert {w.pool for w in session.scalars(select(Worker))} == {"image", "fusion"}
    assert (job.status, job.items_succeeded) == (JobStatus.SUCCEEDED, 10)
    vectors = features(sessions, store, first)
    assert list(vectors) == [f"item-{i}" for i in range(10)]
    assert vectors["item-0"] == vectors["item-6"] != vectors["item-1"]
    assert features(sessions, store, second) == vectors
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(CacheEntry)) == 6
        cached = [
            s.result["items_cached"]
            for s in session.scalars(select(Shard).where(Shard.job_id == second))
            if s.stage == "image"
        ]
        assert sum(cached) == 10
        assert session.scalars(select(Worker)).all() == []


def test_bad_pictures_cost_only_themselves(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Corrupt, empty and foreign bytes get their codes; the others get features."""
    images = [picture(1), picture(2)[:40], b"", b"%PDF-1.4 not a picture", picture(3)]
    with worker(environment, "image"), worker(environment, "fusion"):
        id = submit(settings, sessions, store, request(images))
        job = wait_for_end(sessions, id)
    assert (job.status, job.items_succeeded, job.items_failed) == (JobStatus.SUCCEEDED, 2, 3)
    codes = {error.item_id: error.code for error in item_errors(sessions, id) if error.modality == "image"}
    assert codes == {"item-1": "corrupt_media", "item-2": "empty_media", "item-3": "unsupported_format"}
    assert set(features(sessions, store, id)) == {"item-0", "item-4"}


def test_a_killed_worker_loses_nothing(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """SIGKILL in the middle: its keeper gives the leases up, and another worker goes on."""
    images = [picture(seed) for seed in range(200)]
    with worker(environment, "fusion"):
        with worker(environment, "image") as victim:
            id = submit(settings, sessions, store, request(images, shard_size=2))

            def some_done() -> int | None:
                with sessions() as session:
                    return session.scalar(
                        select(func.count()).select_from(Shard).where(Shard.stage == "image", Shard.state == "done")
                    )

            wait_for(some_done, what="the first shard")
            victim.kill()
            victim.wait()
        with worker(environment, "image"):

            def ended() -> bool:
                sweep(sessions)
                with sessions() as session:
                    return session.get_one(Job, id).status == JobStatus.SUCCEEDED

            wait_for(ended, what="the end of the job")
    assert len(features(sessions, store, id)) == 200


def test_sigterm_hands_work_back(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """A drained worker leaves no lease behind, spends no attempt and exits with 0."""
    id = submit(settings, sessions, store, request([picture(seed) for seed in range(400)], shard_size=2))
    with worker(environment, "image") as process:

        def begun() -> bool:
            with sessions() as session:
                return session.scalar(select(func.count()).select_from(Shard).where(Shard.state == "done")) > 0

        wait_for(begun, what="the first shard")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    with sessions() as session:
        shards = session.scalars(select(Shard).where(Shard.job_id == id, Shard.stage == "image")).all()
    assert {shard.state for shard in shards} <= {"ready", "done"}
    assert all(shard.attempts == (shard.state == "done") for shard in shards)
    assert not any(shard.isolated for shard in shards)


def test_work_goes_on_without_redis(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Hints are only hints: with nothing listening on Redis's port, a whole job finishes, and SIGTERM still drains."""
    deaf = {**environment, "TRIVIUM_REDIS_URL": "redis://:x@127.0.0.1:9/0"}
    with worker(deaf, "image") as image, worker(deaf, "fusion"):
        id = submit(settings, sessions, store, request([picture(seed) for seed in range(8)]))
        assert wait_for_end(sessions, id).status == JobStatus.SUCCEEDED
        image.send_signal(signal.SIGTERM)
        assert image.wait(timeout=30) == 0


def test_a_frozen_worker_is_a_zombie(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Stopped past its lease and thawed, a worker changes nothing; what it held was done by another."""
    with worker(environment, "image") as frozen, worker(environment, "fusion"):
        id = submit(settings, sessions, store, request([picture(seed) for seed in range(400)], shard_size=2))

        def held() -> str | None:
            with sessions() as session:
                return session.scalar(select(Shard.worker).where(Shard.state == "leased", Shard.stage == "image"))

        wait_for(held, what="a lease")
        frozen.send_signal(signal.SIGSTOP)
        with worker(environment, "image"):

            def ended() -> bool:
                sweep(sessions)
                with sessions() as session:
                    return session.get_one(Job, id).status == JobStatus.SUCCEEDED

            wait_for(ended, what="the end of the job")
            before = features(sessions, store, id)
            frozen.send_signal(signal.SIGCONT)
        assert len(before) == 400
    assert features(sessions, store, id) == before


def test_an_encoder_that_cannot_be_loaded_fails_the_job(
    environment: dict[str, str], settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """The job says which encoder and what to do."""
    wanted = {"text": None, "image": "dinov2-small", "audio": None}
    with worker({**environment, "HF_HUB_OFFLINE": "1"}, "image"):
        id = submit(settings, sessions, store, request([picture(1)], encoders=wanted))
        job = wait_for_end(sessions, id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "encoder_unavailable")
    assert "dinov2-small" in (job.error_message or "")
