"""An encoder trained on the labels or targets of items, from what they are to the files of a model.

In this process; or in several, for which this one prepares the items and looks after them (see shared.ml.distributed).
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, TrainEncoder
from shared.items import PlannedItem
from shared.json_numbers import as_json
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.distributed import Answer, answers_of, processes_for, run_ranks
from shared.ml.encoders.base import WEIGHTS, TrainableEncoder
from shared.ml.encoders.border import BORDER, BorderableEncoder, BorderTrainer, bordered
from shared.ml.encoders.loading import load_trainable
from shared.ml.fitting import FittedModel
from shared.ml.lora import Adapter
from shared.ml.prepared_items import PreparedItems, Read, SharedItems, numbered, write_items
from shared.ml.process_group import Alone, ProcessGroup
from shared.ml.rank import Rank
from shared.ml.repeatable import derived_seed, repeatable
from shared.ml.supervision import Supervision
from shared.ml.tuning import Examples, Recipe, Tuner, recipe_of
from shared.settings import WorkerSettings
from shared.worker.progress import Progress

#: Items that train, and items that judge.
Parts = Mapping[str, PreparedItems]

_TRAINED, _PLAN, _ANSWERS, _FILES = "trained", "plan.json", "answers.safetensors", "files.json"


class Plan(BaseModel):
    """What every process has to know. `source` is the folder of an encoder that a job made."""

    model_config = ConfigDict(frozen=True)

    spec: EncoderSpec
    source: Path | None
    how: TrainEncoder
    recipe: Recipe
    supervision: Supervision
    seed: int
    device: str
    precision: Precision

    def load(self, device: str) -> TrainableEncoder:
        """The encoder before training; from here on torch's global generator goes the same way in all processes."""
        torch.manual_seed(self.seed)
        encoder: TrainableEncoder = load_trainable(self.spec, device=device, model_path=self.source)
        border = self.recipe.border
        return BorderTrainer(cast(BorderableEncoder, encoder), border) if border else encoder

    def train(
        self, encoder: TrainableEncoder, examples: Mapping[str, Examples], progress: Progress, group: ProcessGroup
    ) -> dict[str, Any]:
        """Trains the encoder that was loaded. Returns how it went, as JSON."""
        adapter = Adapter(encoder.module, self.recipe.lora_rank) if self.recipe.lora_rank else None
        dtype = choose_dtype(choose_device(self.device), self.precision)
        tuner = Tuner(
            encoder, self.supervision, self.recipe, seed=self.seed, dtype=dtype, progress=progress, group=group
        )
        tuner.run(examples["train"], examples["validation"])
        if adapter is not None:
            adapter.merge()
        return {
            "encoder": self.spec.id,
            "train_encoder": self.how.value,
            "recipe": asdict(self.recipe),
            "items": {part: len(chosen) for part, chosen in examples.items()},
            "processes": group.world_size,
            "best_epoch": tuner.best_epoch,
            "history": as_json(tuner.history),
        }


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
    weights that were best on `validation`. The same result for the same seed, device and numbers of threads and
    processes.

    Raises what `progress.check` raises, TrainingProcessError, and JobError (`too_few_items`, `one_class`, `diverged`,
    `out_of_memory`, `item_lost`).
    """
    device = choose_device(settings.device)
    plan = Plan(
        spec=EncoderSpec.model_validate(spec.model_dump(include=set(EncoderSpec.model_fields))),
        source=folder,
        how=request.train_encoder,
        recipe=recipe_of(request.encoder_training, request.train_encoder, from_scratch=spec.supervised),
        supervision=Supervision.of(_enough(train, spec), request),
        seed=derived_seed(request.training.seed, "encoder", spec.modality.value),
        device=settings.device,
        precision=settings.precision,
    )
    processes = processes_for(settings, device, plan.recipe.batch_size, len(train))
    with repeatable(device):
        encoder = plan.load(settings.device if processes == 1 else "cpu")
        parts = _prepare(plan, encoder, train, validation, read, settings.model_memory_bytes // 2)
        if processes == 1:
            facts = plan.train(encoder, _examples(plan, parts), progress, Alone())
            files = _saved(encoder, facts)
        else:
            files = _train_together(plan, parts, processes, progress, cpu=device.type == "cpu")
    weights, made = (BORDER, bordered(spec)) if plan.recipe.border else (WEIGHTS, spec)
    return FittedModel(files, weights, hashlib.sha256(files[weights]).hexdigest(), made)


def train_rank(here: Rank) -> None:
    """One of several processes: the first leaves the trained model in their folder."""
    plan = Plan.model_validate_json((here.folder / _PLAN).read_bytes())
    answers = load_file(here.folder / _ANSWERS)
    described = json.loads((here.folder / _FILES).read_bytes())

    def ask(part: str, rows: list[int]) -> Path:
        return here.folder / str(here.worker.ask("read", part=part, rows=rows))

    with repeatable(choose_device(plan.device)):
        encoder = plan.load(plan.device)
        examples = {}
        for part, facts in described.items():
            files = [here.folder / name for name in facts["files"]]
            examples[part] = Examples(SharedItems(facts["costs"], files, partial(ask, part)), answers[part])
        found = plan.train(encoder, examples, here.progress, here.group)
        if here.group.rank == 0:
            for name, data in _saved(encoder, found).items():
                (here.folder / _TRAINED / name).write_bytes(data)


def _train_together(plan: Plan, parts: Parts, processes: int, progress: Progress, *, cpu: bool) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _TRAINED).mkdir()
        (folder / _PLAN).write_text(plan.model_dump_json())
        save_file({part: examples.answers for part, examples in _examples(plan, parts).items()}, folder / _ANSWERS)
        described = {part: {"costs": held.costs, "files": held.move_to(folder, part)} for part, held in parts.items()}
        (folder / _FILES).write_text(json.dumps(described))
        answers = {**answers_of(progress, folder), "read": _reader(parts, folder)}
        run_ranks(f"{__name__}:train_rank", folder, processes, cpu=cpu, answers=answers, check=progress.check)
        return {path.name: path.read_bytes() for path in (folder / _TRAINED).iterdir()}


def _reader(parts: Parts, folder: Path) -> Answer:
    """Reads what was not kept, for a process that asks."""
    names = numbered(folder, "read")

    def read(part: str, rows: list[int]) -> str:
        path = next(names)
        write_items(path, dict(zip(rows, parts[part].take(rows), strict=True)))
        return path.name

    return read


def _prepare(
    plan: Plan,
    encoder: TrainableEncoder,
    train: Sequence[PlannedItem],
    validation: Sequence[PlannedItem],
    read: Read,
    room: int,
) -> Parts:
    """Reads them. Raises JobError (`too_few_items`) if none can be read."""
    known = [item for item in validation if plan.supervision.answer(item) is not None]
    judged = PreparedItems(encoder, known, read, room)
    learned = PreparedItems(encoder, train, read, room - judged.bytes)
    for held in (learned, judged):
        _enough(held.items, plan.spec)
    return {"train": learned, "validation": judged}


def _examples(plan: Plan, parts: Parts) -> dict[str, Examples]:
    return {part: Examples(held, plan.supervision.answers(held.items)) for part, held in parts.items()}


def _enough(items: Sequence[PlannedItem], spec: EncoderSpec) -> Sequence[PlannedItem]:
    if not items:
        message = (
            f"{spec.id} cannot be trained: its items for training or for validation are none, or none can be read. "
            f"Give more items with {spec.modality.value}, or leave this encoder out."
        )
        raise JobError(message, code="too_few_items")
    return items


def _saved(encoder: TrainableEncoder, facts: Mapping[str, Any]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        encoder.save(Path(name))
        files = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    return files | {"training.json": json.dumps(facts, indent=2).encode()}
