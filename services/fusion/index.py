"""What the fusion pool does with an index shard: a part of a feature set to rows that can be searched."""

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.fusion.models import TrainedModels
from shared.jobs.records import Finished, Lease
from shared.jobs.search import padded, write_items
from shared.ml.feature_parts import find_parts, read_part, vectors_of
from shared.ml.trained import TrainedModel
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.control import Control

#: Characters of a text that are kept to be shown.
_SHOWN = 1000


@dataclass
class Part:
    """A part of a feature set, the model in whose space it is searched, and its vectors there: [n, d] by modality.

    `table` is None if the part's fusion failed; a row of zeros has no vector.
    """

    model: TrainedModel
    table: pa.Table | None
    projected: dict[Modality, NDArray[np.float32]]


class MakeIndex:
    """Handler of the index stage (see shared.worker.context.Handler).

    Its rows are written in one transaction that ends only if the shard is still this worker's, in the place of those
    that another attempt may have left: a worker that dies at any moment leaves the old rows, or the new ones.
    """

    def __init__(self, context: WorkerContext, models: TrainedModels):
        self._context, self._models = context, models

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the model into memory."""
        self._models.get(lease.request["model"], lease.tenant, control)

    def prepare(self, lease: Lease, control: Control) -> Part:
        """Reads the part."""
        model = self._models.get(lease.request["model"], lease.tenant, control)
        parts = control.patiently(lambda: find_parts(self._context.sessions, lease))
        tables = [control.patiently(partial(read_part, self._context.store, part)) for part in parts]
        return Part(model, tables[0] if tables else None, {})

    def run(self, lease: Lease, prepared: Part, control: Control) -> Part:  # noqa: ARG002
        """Projects each modality into the shared space."""
        if prepared.table is not None and prepared.table.num_rows:
            vectors, mask = {}, {}
            for modality, dimension in prepared.model.dimensions.items():
                vectors[modality], mask[modality] = vectors_of(prepared.table, modality, dimension)
            prepared.projected = prepared.model.project(vectors, mask)
        return prepared

    def store(self, lease: Lease, output: Part, control: Control) -> Finished:
        """Writes the rows."""
        rows = index_rows(output.table, output.projected) if output.table is not None else []

        def write() -> None:
            with self._context.sessions.begin() as session:
                write_items(session, lease, rows)

        control.patiently(write)
        # On the feature set of another job, nobody has counted its items in this one.
        counted = output.table.num_rows if output.table is not None and "features" in lease.spec else 0
        return Finished(lease, None, items_done=lease.items, succeeded=counted, rows=len(rows))


def index_rows(table: pa.Table, projected: dict[Modality, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """The items that have a vector, as columns of IndexedItem."""
    rows = []
    for place, item in enumerate(table.drop_columns([n for n in table.column_names if "vector" in n]).to_pylist()):
        vectors = {f"{m.value}_vector": padded(v[place].tolist()) for m, v in projected.items() if v[place].any()}
        if not vectors:
            continue
        rows.append(
            {
                **dict.fromkeys(f"{m.value}_vector" for m in Modality),
                **vectors,
                "item_id": item["id"],
                "label": [_storable(label) for label in item["label"]],
                "split": item["split"],
                "metadata_": _storable(json.loads(item["metadata"])),
                "text": None if item["text"] is None else _storable(item["text"][:_SHOWN]),
                "image_ref": _storable(item["image_ref"]),
                "audio_ref": _storable(item["audio_ref"]),
            }
        )
    return rows


def _storable(value: Any) -> Any:
    """JSON without what Postgres cannot store: NUL characters, and numbers that are none."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_storable(one) for one in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(one) for name, one in value.items()}
    return value
