"""An encoder trained on the labels or targets of items, from what they are to the files of a model."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.ml.device import choose_device, choose_dtype
from shared.ml.encoders.base import WEIGHTS, TrainableEncoder
from shared.ml.encoders.border import BORDER, BorderableEncoder, BorderTrainer, bordered
from shared.ml.encoders.loading import load_trainable
from shared.ml.fitting import FittedModel
from shared.ml.lora import Adapter
from shared.ml.repeatable import derived_seed, repeatable
from shared.ml.supervision import Supervision
from shared.ml.tuning import Examples, Tuner, recipe_of
from shared.schemas import PlannedItem
from shared.settings import WorkerSettings
from shared.worker.progress import Progress

#: Reads items as an encoder takes them, in any order; those that cannot be read are left out.
Read = Callable[[TrainableEncoder, Sequence[PlannedItem]], Iterator[tuple[PlannedItem, Any]]]


class PreparedItems:
    """Items as an encoder takes them: kept while there is room; the others are read again each time."""

    def __init__(self, encoder: TrainableEncoder, items: Sequence[PlannedItem], read: Read, room: int):
        """Reads them all once. `items` are then those that could be read; `room` is in bytes."""
        self._encoder, self._read = encoder, read
        self._kept: dict[int, Any] = {}
        self.bytes = 0
        costs: dict[int, int] = {}
        for item, prepared in read(encoder, items):
            costs[item.index] = encoder.cost(prepared)
            size = _bytes_of(prepared)
            if self.bytes + size <= room:
                self._kept[item.index] = prepared
                self.bytes += size
        self.items = [item for item in items if item.index in costs]
        self.costs = [costs[item.index] for item in self.items]

    def take(self, rows: Sequence[int]) -> list[Any]:
        """See shared.ml.tuning.Inputs. Raises JobError (`item_lost`) if one cannot be read any more."""
        chosen = [self.items[row] for row in rows]
        missing = [item for item in chosen if item.index not in self._kept]
        fresh = {item.index: prepared for item, prepared in self._read(self._encoder, missing)} if missing else {}
        if len(fresh) < len(missing):
            raise JobError("An item that was read before cannot be read again.", code="item_lost")
        return [fresh[item.index] if item.index in fresh else self._kept[item.index] for item in chosen]


def train_encoder(
    spec: EncoderSpec,
    folder: Path | None,
    request: FineTuneRequest,
    train: Sequence[PlannedItem],
    validation: Sequence[PlannedItem],
    *,
    read: Read,
    settings: WorkerSettings,
    progress: Progress,
) -> FittedModel:
    """Trains an encoder (its files are in `folder`, if a job made it) with a linear head on `train`, and keeps the
    weights that were best on `validation`. The same result for the same seed, device and number of threads.

    Raises what `progress.check` raises, and JobError (`too_few_items`, `one_class`, `diverged`, `out_of_memory`,
    `item_lost`).
    """
    device = choose_device(settings.device)
    with repeatable(device):
        seed = derived_seed(request.training.seed, "encoder", spec.modality.value)
        torch.manual_seed(seed)
        encoder: TrainableEncoder = load_trainable(spec, device=settings.device, model_path=folder)
        recipe = recipe_of(request.encoder_training, request.train_encoder, from_scratch=spec.supervised)
        adapter = Adapter(encoder.module, recipe.lora_rank) if recipe.lora_rank else None
        if recipe.border:
            encoder = BorderTrainer(cast(BorderableEncoder, encoder), recipe.border)
        supervision = Supervision.of(_enough(train, spec), request)
        room = settings.model_memory_bytes // 2
        judged = PreparedItems(encoder, [i for i in validation if supervision.answer(i) is not None], read, room)
        learned = PreparedItems(encoder, train, read, room - judged.bytes)
        dtype = choose_dtype(device, settings.precision)
        tuner = Tuner(encoder, supervision, recipe, seed=seed, dtype=dtype, progress=progress)
        tuner.run(*(Examples(p, supervision.answers(_enough(p.items, spec))) for p in (learned, judged)))
        if adapter is not None:
            adapter.merge()
        facts = {
            "encoder": spec.id,
            "train_encoder": request.train_encoder.value,
            "recipe": asdict(recipe),
            "items": {"train": len(learned.items), "validation": len(judged.items)},
            "best_epoch": tuner.best_epoch,
            "history": tuner.history,
        }
        files = _saved(encoder) | {"training.json": json.dumps(facts, indent=2).encode()}
    weights, made = (BORDER, bordered(spec)) if recipe.border else (WEIGHTS, spec)
    return FittedModel(files, weights, hashlib.sha256(files[weights]).hexdigest(), made)


def _enough(items: Sequence[PlannedItem], spec: EncoderSpec) -> Sequence[PlannedItem]:
    if not items:
        message = (
            f"{spec.id} cannot be trained: its items for training or for validation are none, or none can be read. "
            f"Give more items with {spec.modality.value}, or leave this encoder out."
        )
        raise JobError(message, code="too_few_items")
    return items


def _saved(encoder: TrainableEncoder) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        encoder.save(Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _bytes_of(prepared: Any) -> int:
    """What an item takes in memory: an array, a tensor, or a list of windows."""
    return sum(part.nbytes for part in prepared) if isinstance(prepared, list) else int(prepared.nbytes)
