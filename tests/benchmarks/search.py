"""How many of the nearest a search finds, and how fast: `python tests/benchmarks/search.py`.

    python tests/benchmarks/search.py [ITEMS [QUERIES]]

An index of so many pictures beside another tenant's of the same size, on the embedded Postgres, written as index shards
write it. Vectors have 128 dimensions and lie around centres, as those of learned spaces do. Each query is searched by
the HNSW index and exactly, without a filter and with one that a tenth and a hundredth of the items pass. Prints a JSON
line for writing, one for each kind of search (milliseconds; recall@10 against the exact search), and one with ratios.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, text

from deploy.local.servers import Servers
from shared.db import Sessions, make_engine, make_sessions
from shared.ids import new_id
from shared.jobs import engine
from shared.jobs.models import Job, JobStage, Shard
from shared.jobs.records import Finished
from shared.jobs.search import nearest, padded, write_items
from shared.migrations.upgrade import upgrade
from shared.queues import Modality, Queue, Stage
from shared.search import SearchFilter
from shared.settings import load_settings

DIMENSION, SHARD = 128, 256
FILTERS = {
    "none": SearchFilter(),
    "a tenth": SearchFilter(metadata={"tenth": 3}),
    "a hundredth": SearchFilter(label="label-7"),
}


def directions(count: int, seed: int) -> NDArray[np.float64]:
    """Unit vectors around a thousand centres: float64 [count, DIMENSION]."""
    centres = np.random.default_rng(0).normal(size=(1000, DIMENSION))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, len(centres), count)] + rng.normal(0, 0.7, (count, DIMENSION))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(sessions: Sessions, vectors: NDArray[np.float64], tenant: str) -> tuple[str, float]:
    """Writes an index, shard by shard; returns its id, and items a second."""
    id, shards = new_id("job"), -(-len(vectors) // SHARD)
    with sessions.begin() as session:
        job = Job(id=id, tenant=tenant, type="index", status="running", request={"type": "index"}, request_sha256="")
        job.shards_open = shards
        session.add(job)
        session.flush()
        session.add(JobStage(job_id=id, stage=Stage.INDEX, shards_total=shards))
        for index in range(shards):
            session.add(Shard(job_id=id, tenant=tenant, stage=Stage.INDEX, queue=Queue.FUSION, index=index))
    began = time.perf_counter()
    for _ in range(shards):
        with sessions.begin() as session:
            [lease] = engine.claim(session, Queue.FUSION, "benchmark", limit=1, lease_seconds=600)
        first = lease.index * SHARD
        rows = [row(first + place, vector) for place, vector in enumerate(vectors[first : first + SHARD])]
        with sessions.begin() as session:
            write_items(session, lease, rows)
        with sessions.begin() as session:
            engine.finish(session, [Finished(lease, None, succeeded=len(rows))])
    return id, len(vectors) / (time.perf_counter() - began)


def row(place: int, vector: NDArray[np.float64]) -> dict[str, Any]:
    """A picture as its shard writes it."""
    return {
        "item_id": f"item-{place:07d}", "text_vector": None, "image_vector": padded(vector.tolist()),
        "audio_vector": None, "label": [f"label-{place % 100}"], "split": "train", "metadata_": {"tenth": place % 10},
        "text": None, "image_ref": f"images/{place}.png", "audio_ref": None,
    }  # fmt: skip


def measure(
    sessions: Sessions, index: str, queries: NDArray[np.float64], wanted: SearchFilter, *, exact: bool
) -> tuple[list[list[str]], NDArray[np.float64]]:
    """What each query finds, and its milliseconds."""
    found, milliseconds = [], []
    for query in queries:
        began = time.perf_counter()
        with sessions() as session:
            answers = nearest(session, index, query.tolist(), [Modality.IMAGE], wanted, limit=10, exact=exact)
        milliseconds.append((time.perf_counter() - began) * 1000)
        found.append([one.id for one in answers])
    return found, np.array(milliseconds)


def compare(sessions: Sessions, index: str, queries: NDArray[np.float64]) -> None:
    """Prints recall and times of each kind of search."""
    ratios = {}
    for name, wanted in FILTERS.items():
        best, slow = measure(sessions, index, queries, wanted, exact=True)
        found, fast = measure(sessions, index, queries, wanted, exact=False)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
        line = {"filter": name, "recall@10": round(float(recall), 4), "found": min(map(len, found))}
        for kind, times in (("hnsw", fast), ("exact", slow)):
            line[kind] = {"median": round(float(np.median(times)), 1), "p95": round(float(np.percentile(times, 95)), 1)}
        ratios[name] = round(float(np.median(slow) / np.median(fast)), 1)
        print(json.dumps(line))
    print(json.dumps({"exact to hnsw": ratios}))


def main(items: int = 5_000, queries: int = 100) -> None:
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder), durable=False) as servers:
        os.environ.update(servers.environment)
        database = make_engine(load_settings().database_url.get_secret_value())
        upgrade(database)
        sessions = make_sessions(database)
        build(sessions, directions(items, 1), "other")
        index, rate = build(sessions, directions(items, 2), "default")
        with sessions.begin() as session:
            session.execute(text("ANALYZE indexed_items"))
            size = session.scalar(func.pg_relation_size("indexed_items_image")) or 0
        print(json.dumps({"items": items, "of the table": 2 * items, "items a second": round(rate), "bytes": size}))
        compare(sessions, index, directions(queries, 3))
        database.dispose()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
