"""Seconds and memory for planning a manifest of many lines: `python tests/benchmarks/planning.py [LINES]`."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from services.dispatcher.manifests.detection import open_object
from services.dispatcher.manifests.reading import Reading
from shared.catalog import load_catalog
from shared.items import MediaLocation
from shared.planning import Place, PlanRequest, plan_rows
from shared.schemas import Encoders, Fusion
from shared.settings import Fetching, Limits
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, TOKEN

FILES = [f"file-{i:026d}" for i in range(1000)]


class FileStore(MemoryStore):
    """One object, which is a file; what is written is forgotten, since real storage would hold it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def size(self, key: str, bucket: str | None = None) -> int:
        return self._path.stat().st_size

    def get(self, key: str, *, offset: int = 0, length: int | None = None, bucket: str | None = None) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def put(self, key: str, *args: Any, **options: Any) -> Any:
        stored = super().put(key, *args, **options)
        self.delete([key])
        return stored


def write_manifest(path: Path, lines: int) -> None:
    with path.open("w") as file:
        for i in range(lines):
            item = {"id": f"item-{i:09d}", "text": f"A short caption of picture {i}", "image": FILES[i % 1000]}
            file.write(json.dumps(item) + "\n" if i % 100 else "{broken\n")


def memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(lines: int) -> None:
    known = {id: MediaLocation(key="blobs/default/x", size=1000, sha256="ab" * 32) for id in FILES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        write_manifest(path, lines)
        store, before, start = FileStore(path), memory_bytes(), time.perf_counter()
        plan = plan_rows(
            open_object(Reading(store, Limits(), JOB_ID, TOKEN), "manifest"),
            PlanRequest(encoders=Encoders(), fusion=Fusion(), shard_size=256),
            Place(store, JOB_ID, TOKEN),
            catalog=load_catalog(),
            limits=Limits(),
            fetching=Fetching(),
            resolve_files=lambda ids: {id: known[id] for id in ids},
        )
        failures = sum(1 for _ in plan.failures)
        seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "items": plan.items_total,
                "failures": failures,
                "slices": len(plan.slices),
                "seconds_per_million": round(seconds / lines * 1e6, 1),
                "growth_mb": round((memory_bytes() - before) / 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
