"""Reading the Parquet parts of feature sets: which there are, and the vectors that they hold."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.db import Sessions
from shared.jobs import outputs
from shared.jobs.records import Lease
from shared.queues import READING, Modality
from shared.schemas import Part
from shared.storage.objects import ObjectStore
from shared.worker.slices import read_verified


def find_parts(sessions: Sessions, lease: Lease) -> Sequence[Part]:
    """The parts that a shard reads: of the job that its spec names (`features`), else of its own job."""
    with sessions() as session:
        found = outputs.parts(session, lease.spec.get("features", lease.job_id))
    if lease.stage in READING:
        return [part for part in found if part.index == lease.index]
    return found


def read_part(store: ObjectStore, part: Part) -> pa.Table:
    """A part as a table. Raises CorruptObjectError if its bytes are not what its row says."""
    return pq.read_table(io.BytesIO(read_verified(store, part.key, part.sha256)))


def vectors_of(table: pa.Table, modality: Modality, dimension: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A modality's vectors, float32 [n, dimension] with zeros where there is none, and where there is one, bool [n]."""
    vectors, present = np.zeros((table.num_rows, dimension), np.float32), np.zeros(table.num_rows, np.bool_)
    name = f"{modality.value}_vector"
    if name in table.column_names:
        column = table.column(name).combine_chunks()
        present = np.asarray(column.is_valid())
        vectors[present] = np.asarray(column.flatten(), np.float32).reshape(-1, dimension)
    return vectors, present
