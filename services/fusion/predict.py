"""What the fusion pool does with a predict shard: a part of a feature set to a part of predictions."""

import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.fusion.models import TrainedModels
from shared.jobs.records import Finished, Lease
from shared.ml.feature_parts import find_parts, read_part, vectors_of
from shared.ml.trained import Predictions, TrainedModel
from shared.queues import Modality
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control

#: Columns of the feature set that stay beside the predictions.
_KEPT = ("id", "label", "target", "split", "metadata")


@dataclass
class Features:
    """A part of a feature set, and the model that it is for. `table` is None if the part's fusion failed."""

    model: TrainedModel
    table: pa.Table | None
    predictions: Predictions | None = None
    contributions: dict[Modality, Any] | None = None


class Predict:
    """Handler of the predict stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext, models: TrainedModels):
        self._context, self._models = context, models

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the model into memory."""
        self._models.get(lease.request["model"], lease.tenant, control)

    def prepare(self, lease: Lease, control: Control) -> Features:
        """Reads the part."""
        model = self._models.get(lease.request["model"], lease.tenant, control)
        parts = control.patiently(lambda: find_parts(self._context.sessions, lease))
        tables = [control.patiently(partial(read_part, self._context.store, part)) for part in parts]
        return Features(model, tables[0] if tables else None)

    def run(self, lease: Lease, prepared: Features, control: Control) -> Features:  # noqa: ARG002
        """Predicts."""
        if prepared.table is not None and prepared.table.num_rows:
            vectors, mask = {}, {}
            for modality, dimension in prepared.model.dimensions.items():
                vectors[modality], mask[modality] = vectors_of(prepared.table, modality, dimension)
            prepared.predictions = prepared.model.predict(vectors, mask)
            if lease.request["contributions"]:
                prepared.contributions = prepared.model.contributions(vectors, mask)
        return prepared

    def store(self, lease: Lease, output: Features, control: Control) -> Finished:
        """Writes the part of predictions."""
        rows = 0 if output.table is None else output.table.num_rows
        if output.table is None:
            return Finished(lease, None, items_done=lease.items)
        target = io.BytesIO()
        pq.write_table(predictions_table(output), target, compression="zstd")
        key = keys.prediction_part(lease.job_id, lease.index, lease.token)
        store = self._context.store
        stored = control.patiently(lambda: store.put(key, target.getvalue(), "application/vnd.apache.parquet"))
        # On the feature set of another job, nobody has counted its items in this one.
        counted = rows if "features" in lease.spec else 0
        return Finished(lease, stored, items_done=lease.items, succeeded=counted, rows=rows)


def predictions_table(output: Features) -> pa.Table:
    """The items with what the model says of them.

    `prediction` (list of class names, or a number), `probability` (of the class named first), `probabilities` (float32,
    in the order of the model's classes), and `contribution_<modality>`: how much the modality moved the prediction.
    """
    table, predictions = output.table, output.predictions
    assert table is not None
    columns: dict[str, Any] = {name: table.column(name) for name in _KEPT}
    if predictions is None:
        return pa.table(columns)
    if predictions.probabilities is None:
        columns["prediction"] = pa.array(predictions.values, pa.float64())
    else:
        flat = pa.array(predictions.probabilities.astype(np.float32).reshape(-1))
        columns["prediction"] = pa.array(predictions.labels, pa.list_(pa.string()))
        columns["probability"] = pa.array(predictions.probabilities.max(axis=1), pa.float64())
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, predictions.probabilities.shape[1])
    for modality, values in (output.contributions or {}).items():
        columns[f"contribution_{modality.value}"] = pa.array(values, pa.float64())
    return pa.table(columns)
