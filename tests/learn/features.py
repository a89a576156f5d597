"""Feature sets as users get them: the whole platform on this machine, a features job for each dataset."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from deploy.local.stack import Stack
from services.client.client import Client
from services.finetune.data import Dataset, read_parts
from services.fusion.parquet import column_of
from shared.queues import Modality
from shared.schemas import JobStatus

#: The encoders whose weights ship in packages; fp32, so that the figures do not depend on what a CPU computes in bf16.
_ENCODERS = {"text": "all-minilm-l6-v2", "image": "mobilenet_v2", "audio": "mfcc-stats"}
_ENVIRONMENT = {"TRIVIUM_PRECISION": "fp32", "HF_HUB_OFFLINE": "1"}


def feature_sets(archives: Mapping[str, Path], kept: Path | None = None) -> dict[str, Dataset]:
    """The features of each dataset, by name. Those of equal archives in the folder `kept` are not made anew; new ones
    are added to it.

    Raises RuntimeError if a job does not succeed on every item.
    """
    with _folder(kept) as folder:
        paths = {name: folder / f"{name}-{_digest(path)}.parquet" for name, path in archives.items()}
        missing = {name: archives[name] for name, path in paths.items() if not path.exists()}
        if missing:
            _make(missing, paths)
        return {name: read_features(path) for name, path in paths.items()}


def read_features(path: Path) -> Dataset:
    """The feature set in a Parquet file, as `trivium results` writes it."""
    table = pq.read_table(path)
    columns = {m: column_of(m) for m in Modality}
    dimensions = {m: table.schema.field(c).type.list_size for m, c in columns.items() if c in table.column_names}
    return read_parts([table], dimensions)


def _make(archives: Mapping[str, Path], paths: Mapping[str, Path]) -> None:
    os.environ.pop("TRIVIUM_API_KEY", None)  # the embedded stack needs none, and would refuse another platform's
    with (
        tempfile.TemporaryDirectory(prefix="trivium-learn-") as folder,
        Stack(folder, durable=False, replicas={"finetune": 0}, environment=_ENVIRONMENT) as stack,
    ):
        stack.wait_ready()
        with Client(stack.gateway_url) as client:
            jobs = {name: client.features(path, encoders=_ENCODERS).id for name, path in archives.items()}
            for name, id in jobs.items():
                print(f"{name}: features …", file=sys.stderr)
                job = client.jobs.wait(id)
                if job.status is not JobStatus.SUCCEEDED or job.items.succeeded != job.items.total:
                    raise RuntimeError(f"{name}: {job.items} ({job.status.value}): {job.error}")
                client.jobs.results(id, paths[name])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="trivium-learn-") as folder:
            yield Path(folder)
        return
    kept.mkdir(parents=True, exist_ok=True)
    yield kept
