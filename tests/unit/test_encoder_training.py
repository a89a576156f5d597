"""Encoders trained on labels: better than before, the same every time, resumed, blind to test items."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.items import PlannedItem, Split
from shared.ml import tuning
from shared.ml.encoder_training import train_encoder
from shared.ml.encoders.base import WEIGHTS, Encoder, TrainableEncoder
from shared.ml.encoders.loading import load_encoder
from shared.ml.encoders.transformers_text import TransformersTextEncoder
from shared.ml.fitting import FittedModel
from shared.ml.splits import split_items
from shared.settings import WorkerSettings
from shared.testing.tiny import tiny_bert, word_order
from shared.worker.progress import Silence

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = WorkerSettings(device="cpu", precision="fp32")
PARTS = ("train", "train", "train", "validation", "test")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """Random weights; its pooled vectors say little about the order of words."""
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def texts(number: int, seed: int = 0) -> list[PlannedItem]:
    """Items in which the order of words decides, three fifths of them for training."""
    return [
        PlannedItem(index=i, id=f"i{i}", text=text, label=[label], split=PARTS[i % 5])
        for i, (text, label) in enumerate(word_order(number, seed))
    ]


def ask(how: str = "full", **training: Any) -> FineTuneRequest:
    """A request; what it says of its items does not matter here."""
    body = {"type": "fine_tune", "features": "job-x", "train_encoder": how, "encoder_training": training}
    return FineTuneRequest.model_validate(body)


def read(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
    """As the text pool does it; but the last come first, which must not matter."""
    for item in reversed(items):
        yield item, encoder.preprocess(str(item.text))


def train(spec: EncoderSpec, items: list[PlannedItem], request: FineTuneRequest, **options: Any) -> FittedModel:
    """The tuned encoder."""
    splits = split_items(items, request)
    of = {split: [item for item in items if splits[item.id] is split] for split in Split}
    options = {"read": read, "settings": CPU, "progress": Silence(), **options}
    return train_encoder(spec, None, request, of[Split.TRAIN], of[Split.VALIDATION], **options)


def loaded(spec: EncoderSpec, model: FittedModel, folder: Path) -> Encoder:
    """As a pool loads it."""
    for name, data in model.files.items():
        (folder / name).write_bytes(data)
    return load_encoder(spec, device="cpu", precision="fp32", model_path=folder)


def accuracy(encoder: Encoder, train: list[PlannedItem], test: list[PlannedItem]) -> float:
    """Of a linear model on standardised vectors."""
    rows = [encoder.encode([encoder.preprocess(str(item.text)) for item in items]) for items in (train, test)]
    mean, std = rows[0].mean(axis=0), rows[0].std(axis=0) + 1e-6
    model = LogisticRegression(C=0.1, max_iter=5000).fit((rows[0] - mean) / std, [item.label[0] for item in train])
    return float(model.score((rows[1] - mean) / std, [item.label[0] for item in test]))


def history(model: FittedModel) -> list[dict[str, float]]:
    """What each epoch came to."""
    entries: list[dict[str, float]] = json.loads(model.files["training.json"])["history"]
    return entries


class Interrupted(Exception):
    """The worker was killed."""


class Watcher(Silence):
    """Keeps checkpoints; kills the worker after so many steps."""

    def __init__(self, steps: int | None = None):
        self.saved: dict[str, bytes] = {}
        self.epochs: list[int] = []
        self.steps = steps

    def check(self) -> None:
        if self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                raise Interrupted

    def report(self, kind: str, **facts: Any) -> None:
        self.epochs.append(facts["epoch"])

    def is_due(self) -> bool:
        return True

    def save(self, name: str, state: bytes) -> None:
        self.saved[name] = state

    def restore(self, name: str) -> bytes | None:
        return self.saved.get(name)


@pytest.mark.parametrize(("how", "rate"), [("full", 3e-3), ("lora", 1e-2)])
def test_a_tuned_encoder_beats_a_frozen_one(bert: EncoderSpec, tmp_path: Path, how: str, rate: float) -> None:
    """It learns the order of words, which a linear model on its frozen vectors does not find."""
    items, test = texts(300), texts(200, seed=1)
    known = [item for item in items if item.split != "test"]
    assert accuracy(load_encoder(bert, device="cpu", precision="fp32"), known, test) < 0.8
    model = train(bert, items, ask(how, epochs=25, patience=25, learning_rate=rate))
    assert accuracy(loaded(bert, model, tmp_path), known, test) > 0.95


def test_the_same_seed_gives_the_same_weights_however_often_it_was_killed(bert: EncoderSpec) -> None:
    """Killed in the middle of an epoch, and again, it goes on from that very batch as if nothing had been."""
    items, request = texts(60), ask("lora", epochs=4, learning_rate=1e-2)
    whole = train(bert, items, request, progress=Watcher())
    progress = Watcher()
    for steps in (2, 6):
        progress.steps = steps
        with pytest.raises(Interrupted):
            train(bert, items, request, progress=progress)
    progress.steps = None
    resumed = train(bert, items, request, progress=progress)
    assert resumed.files == whole.files
    assert resumed.fingerprint == whole.fingerprint
    assert progress.epochs == [1, 2, 3, 4]
    other = request.model_copy(update={"training": request.training.model_copy(update={"seed": 1})})
    assert train(bert, items, other).fingerprint != whole.fingerprint


def test_test_items_never_influence_the_fit(bert: EncoderSpec) -> None:
    """Neither their labels nor their texts; those of training items do."""
    items, request = texts(50), ask(epochs=1)
    before = train(bert, items, request).fingerprint
    other = [i.model_copy(update={"text": "park", "label": ["x", "y"]}) if i.split == "test" else i for i in items]
    assert train(bert, other, request).fingerprint == before
    changed = [i.model_copy(update={"text": "park"}) if i.index == 0 else i for i in items]
    assert train(bert, changed, request).fingerprint != before


def test_items_without_room_are_read_again_for_each_batch(bert: EncoderSpec) -> None:
    """With the same outcome."""
    items, request, reads = texts(40), ask(epochs=2), []

    def counting(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
        reads.append(len(items))
        return read(encoder, items)

    roomy = train(bert, items, request, read=counting)
    assert reads == [8, 24]
    tight = train(bert, items, request, read=counting, settings=CPU.model_copy(update={"model_memory_bytes": 0}))
    assert sum(reads[2:]) == 3 * (24 + 8)
    assert tight.files == roomy.files


def test_a_batch_that_does_not_fit_into_memory_is_cut(bert: EncoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same outcome but for what dropout draws; an item that does not fit alone ends the job."""
    vectors, limit, seen = TransformersTextEncoder.vectors, 100, [0]

    def small(self: TransformersTextEncoder, batch: Sequence[Any]) -> torch.Tensor:
        if self.module.training and len(batch) > limit:
            raise RuntimeError("out of memory")
        seen.append(len(batch) if self.module.training else 0)
        return vectors(self, batch)

    monkeypatch.setattr(TransformersTextEncoder, "vectors", small)
    items, request = texts(80), ask(epochs=1)
    whole = history(train(bert, items, request))[0]
    assert max(seen) == 16
    limit, seen = 4, [0]
    parts = history(train(bert, items, request))[0]
    assert max(seen) == 4
    assert parts["validation_loss"] == pytest.approx(whole["validation_loss"], rel=0.05)
    limit = 0
    with pytest.raises(JobError) as caught:
        train(bert, items, request)
    assert caught.value.error_code == "out_of_memory"


def test_numbers_and_several_labels_are_learned_too(bert: EncoderSpec) -> None:
    """By the square of the error, and class by class."""
    training = {"epochs": 10, "patience": 10, "learning_rate": 5e-3}
    items = texts(200)
    several = [
        item.model_copy(update={"label": [*item.label, *(["red"] if "red" in str(item.text) else [])]})
        for item in items
    ]
    losses = [entry["validation_loss"] for entry in history(train(bert, several, ask(**training)))]
    assert min(losses) < 0.5 < losses[0]
    numbered = [item.model_copy(update={"target": 100.0 + 10 * str(item.text).count("red")}) for item in items]
    request = ask(**training).model_copy(update={"method": "regressor"})
    losses = [entry["validation_loss"] for entry in history(train(bert, numbered, request))]
    assert min(losses) < 0.3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label": ["one"]}, "one_class"),
        ({"label": []}, "too_few_items"),
        ({"split": "train"}, "too_few_items"),
    ],
)
def test_what_cannot_be_learned_is_said(bert: EncoderSpec, change: dict[str, Any], code: str) -> None:
    """A single class, no label at all, nothing to judge by."""
    items = [item.model_copy(update=change) for item in texts(5)]
    with pytest.raises(JobError) as caught:
        train(bert, items, ask(epochs=1))
    assert caught.value.error_code == code


def test_items_that_cannot_be_read_are_left_out_until_none_is_left(bert: EncoderSpec) -> None:
    """Their failure is reported where they are encoded."""

    def never(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
        return iter(())

    def some(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
        return read(encoder, items[1:])

    facts = json.loads(train(bert, texts(50), ask(epochs=1), read=some).files["training.json"])
    assert facts["items"] == {"train": 29, "validation": 9}
    with pytest.raises(JobError, match="none can be read") as caught:
        train(bert, texts(50), ask(epochs=1), read=never)
    assert caught.value.error_code == "too_few_items"


def test_a_loss_that_is_no_number_ends_the_job(bert: EncoderSpec, tmp_path: Path) -> None:
    """With advice; here the weights were broken from the start."""
    shutil.copytree(bert.source, tmp_path, dirs_exist_ok=True)
    weights = {name: tensor * torch.nan for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(JobError, match="learning rate") as caught:
        train(bert.model_copy(update={"source": str(tmp_path)}), texts(50), ask(epochs=2))
    assert caught.value.error_code == "diverged"


def test_batches_hold_each_item_once_and_items_of_like_cost() -> None:
    """Even where the number of items is no multiple of the size."""
    costs = np.random.default_rng(0).integers(1, 512, 1003).tolist()
    batches = tuning.shuffled_batches(costs, 16, np.random.default_rng(1))
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert all(8 <= len(batch) <= 16 for batch in batches)
    padded = sum(max(costs[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(costs)
    assert batches != tuning.shuffled_batches(costs, 16, np.random.default_rng(2))
