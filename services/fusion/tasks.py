"""What the fusion pool does with a shard: the vectors of a slice's modalities to one part of the feature set."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import select

from services.fusion.index import MakeIndex
from services.fusion.lane import ModelLane
from services.fusion.models import TrainedModels
from services.fusion.parquet import feature_schema, write_part
from services.fusion.predict import Predict
from shared.items import PlannedItem
from shared.jobs.encoders import encoder_ids
from shared.jobs.models import ItemError, Shard
from shared.jobs.records import Finished, ItemFailure, Lease
from shared.jobs.states import ShardState
from shared.ml.device import configure_threads
from shared.ml.fusion.build import make_fusion
from shared.queues import Modality, Stage
from shared.schemas import Fusion, FusionMethod
from shared.storage import keys
from shared.worker.context import Handler, LaneHandler, WorkerContext
from shared.worker.control import Control
from shared.worker.processes import torch_threads
from shared.worker.slices import read_slice, read_verified, unpack

Vectors = NDArray[np.float32]


@dataclass
class Slice:
    """A slice's items beside what extraction made of them."""

    items: list[PlannedItem]
    vectors: dict[Modality, Vectors]
    present: dict[Modality, NDArray[np.bool_]]
    faulty: set[int]
    failures: list[ItemFailure]
    fused: Vectors | None = None


class FuseFeatures:
    """Handler of the fusion stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext, models: TrainedModels):
        self._context, self._models = context, models

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the model into memory, if it is one that fuses: the other fusions have no weights."""
        if (model := lease.schema["fusion"].get("model")) is not None:
            self._models.get(model, lease.tenant, control)

    def prepare(self, lease: Lease, control: Control) -> Slice:
        """Reads the slice's items and the vectors that its extraction shards left."""
        items = control.patiently(lambda: read_slice(self._context.store, lease.spec))
        shards, faulty = control.patiently(lambda: self._rows(lease))
        position = {item.index: i for i, item in enumerate(items)}
        slice_ = Slice(items, {}, {}, faulty, [])
        for modality in (m for m in Modality if m in lease.schema["encoders"]):  # JSONB does not keep an order
            dimension = lease.schema["dimensions"][modality.value]
            slice_.vectors[modality] = np.zeros((len(items), dimension), np.float32)
            slice_.present[modality] = np.zeros(len(items), np.bool_)
            shard = shards.get(modality.value)
            if shard is None:
                continue
            if shard.state == ShardState.FAILED or shard.result_key is None or shard.result_sha256 is None:
                slice_.failures += _lost(items, modality, shard.error_message)
                continue
            key, sha256 = shard.result_key, shard.result_sha256
            arrays = unpack(control.patiently(partial(read_verified, self._context.store, key, sha256)))
            rows = [position[int(i)] for i in arrays["index"]]
            slice_.vectors[modality][rows] = arrays["vectors"]
            slice_.present[modality][rows] = True
        return slice_

    def run(self, lease: Lease, prepared: Slice, control: Control) -> Slice:
        """Fuses, on the CPU: the vectors would take longer to a GPU and back than it takes to join them."""
        fusion = Fusion.model_validate(lease.schema["fusion"])
        if fusion.model is not None:
            model = self._models.get(fusion.model, lease.tenant, control)
            prepared.fused = model.fused(prepared.vectors, prepared.present)
        elif fusion.method is not FusionMethod.NONE:
            dimensions = {m: rows.shape[1] for m, rows in prepared.vectors.items()}
            module = make_fusion(fusion.method, dimensions, fusion.parameters()).eval()
            vectors = {m: torch.from_numpy(rows) for m, rows in prepared.vectors.items()}
            mask = {m: torch.from_numpy(rows) for m, rows in prepared.present.items()}
            with torch.inference_mode():
                prepared.fused = module(vectors, mask).numpy()
        return prepared

    def store(self, lease: Lease, output: Slice, control: Control) -> Finished:
        """Writes the part; items without any vector have no row."""
        reads_text = lease.schema.get("reads_text", False)
        words = [reads_text and (item.text is not None or item.messages is not None) for item in output.items]
        usable = np.logical_or.reduce([np.array(words, np.bool_), *output.present.values()])
        rows = np.flatnonzero(usable)
        vectors: dict[str, Vectors] = {m.value: v[rows] for m, v in output.vectors.items()}
        present = {m.value: p[rows] for m, p in output.present.items()}
        if output.fused is not None:
            vectors["fused"], present["fused"] = output.fused[rows], np.ones(len(rows), np.bool_)
        schema = feature_schema(lease.schema["dimensions"], _provenance(lease), messages=reads_text)
        data = write_part(schema, [output.items[i] for i in rows], vectors, present)
        key = keys.feature_part(lease.job_id, lease.index, lease.token)
        stored = control.patiently(lambda: self._context.store.put(key, data, "application/vnd.apache.parquet"))
        faulty = output.faulty | {failure.item_index for failure in output.failures}
        incomplete = sum(output.items[i].index in faulty for i in rows)
        unusable = [item for item, ok in zip(output.items, usable, strict=True) if not ok]
        return Finished(
            lease,
            stored,
            items_done=len(output.items),
            failures=[*output.failures, *(_unusable(item) for item in unusable)],
            succeeded=len(rows) - incomplete,
            partial=incomplete,
            failed=len(unusable),
            rows=len(rows),
        )

    def _rows(self, lease: Lease) -> tuple[Mapping[str, Shard], set[int]]:
        """The extraction shards of this slice by modality, and the items that have an error already."""
        first, size = lease.index * lease.schema["shard_size"], lease.schema["shard_size"]
        with self._context.sessions() as session:
            shards = session.scalars(
                select(Shard).where(
                    Shard.job_id == lease.job_id,
                    Shard.index == lease.index,
                    Shard.stage.in_([m.value for m in Modality]),
                )
            ).all()
            faulty = session.scalars(
                select(ItemError.item_index).where(
                    ItemError.job_id == lease.job_id, ItemError.item_index >= first, ItemError.item_index < first + size
                )
            ).all()
        return {shard.stage: shard for shard in shards}, set(faulty)


class FusionPool:
    """What this service brings to the shard loop (see shared.worker.context.Pool)."""

    def __init__(self, context: WorkerContext):
        configure_threads(torch_threads(context.settings.worker, decoding=False))
        self._models = TrainedModels(context)
        self.handlers: Mapping[Stage, Handler] = {
            Stage.FUSION: FuseFeatures(context, self._models),
            Stage.PREDICT: Predict(context, self._models),
            Stage.INDEX: MakeIndex(context, self._models),
        }
        self.lane: LaneHandler | None = ModelLane(self._models)

    def loaded_models(self) -> list[str]:
        """Ids of the trained models in memory."""
        return self._models.ids()

    def close(self) -> None:
        """Nothing to end."""


def make_pool(context: WorkerContext) -> FusionPool:
    """The fusion pool."""
    return FusionPool(context)


def _lost(items: list[PlannedItem], modality: Modality, reason: str | None) -> list[ItemFailure]:
    message = f"The shard of this item failed: {reason}"
    return [
        ItemFailure(item.index, item.id, modality, "shard_failed", message)
        for item in items
        if getattr(item, modality.value) is not None
    ]


def _unusable(item: PlannedItem) -> ItemFailure:
    message = "No modality of this item could be used; see its other errors."
    return ItemFailure(item.index, item.id, None, "no_usable_modality", message)


def _provenance(lease: Lease) -> dict[str, Any]:
    encoders = {m: {**lease.schema["encoders"][m], "id": id} for m, id in encoder_ids(lease.schema).items()}
    return {"job_id": lease.job_id, "encoders": encoders, "fusion": lease.schema["fusion"]}
