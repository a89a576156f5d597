"""A tiny language model tuned in two processes: as in one, from a checkpoint on exactly, and none lives without the
others."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load
from torch.testing import assert_close

from services.finetune.language.data import Conversations
from services.finetune.outcome import Outcome
from services.finetune.tuning import Tuning, tune
from shared.conversations import Message
from shared.language_models import LanguageModelSpec
from shared.language_tuning import InstructionRequest
from shared.ml.distributed import TrainingProcessError
from shared.ml.prepared_items import ItemFile, write_items
from shared.queues import Modality
from shared.settings import WorkerSettings
from shared.testing.ranks import is_alive, ranks_of
from shared.testing.tiny import tiny_language_model
from tests.unit.finetune_data import Outside, dataset

pytestmark = pytest.mark.usefixtures("one_thread")

ADAPTER, PROJECTOR = "adapter_model.safetensors", "projector.safetensors"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelSpec:
    return tiny_language_model(tmp_path_factory.mktemp("tiny"))


def pictures(count: int = 41) -> Conversations:
    """Answers of different lengths, and an item in five without its picture."""
    rng = np.random.default_rng(0)
    which = np.arange(count) % 2
    there = {Modality.IMAGE: np.arange(count) % 5 > 0}
    items = dataset(
        {Modality.IMAGE: rng.normal(size=(count, 4)) + 4 * which[:, None]},
        [["yes, it is one"] if w else ["no"] for w in which], present=there,
    )  # fmt: skip
    talk = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    messages = [talk if place % 7 == 3 else None for place in range(count)]
    return Conversations(items, ["cat?"] * count, messages, [None] * count)


def tuning(spec: LanguageModelSpec, **training: Any) -> Tuning:
    """Without dropout, which would draw other values for other shares of a step."""
    options = {"epochs": 2, "batch_size": 6, "gradient_accumulation": 2, "learning_rate": 0.005, "lora_dropout": 0.0}
    options |= {"max_length": 64, "max_new_tokens": 4, **training}
    asked = {"type": "fine_tune", "method": "instruction", "features": "job-x", "training": options}
    return Tuning(pictures(), InstructionRequest.model_validate(asked), spec, None, {})


def run(work: Tuning, progress: Outside, processes: int) -> Outcome:
    settings = WorkerSettings(device="cpu", precision="fp32", training_processes=processes)
    return tune(work, settings, progress)


def test_what_is_handed_to_other_processes_arrives(spec: LanguageModelSpec, tmp_path: Path) -> None:
    """Arrays, conversations, the request, the files of a tuned model."""
    given = replace(tuning(spec), start={"config.json": b"{}", "empty": b""})
    write_items(tmp_path / "given", {0: given})
    found = ItemFile(tmp_path / "given").read(0)
    assert (found.request, found.spec, found.start) == (given.request, given.spec, given.start)
    assert (found.data.texts, found.data.messages) == (given.data.texts, given.data.messages)
    mine, theirs = found.data.items, given.data.items
    assert (mine.ids, mine.labels, mine.text_targets) == (theirs.ids, theirs.labels, theirs.text_targets)
    assert [type(modality) for modality in mine.vectors] == [Modality]
    np.testing.assert_array_equal(mine.vectors[Modality.IMAGE], theirs.vectors[Modality.IMAGE])
    np.testing.assert_array_equal(mine.present[Modality.IMAGE], theirs.present[Modality.IMAGE])
    np.testing.assert_array_equal(mine.targets, theirs.targets)


@pytest.fixture(scope="module")
def together(spec: LanguageModelSpec) -> tuple[Outcome, Outside]:
    """What two processes made, undisturbed, and what they said."""
    outside = Outside()
    return run(tuning(spec), outside, 2), outside


def test_two_processes_come_to_what_one_comes_to(spec: LanguageModelSpec, together: tuple[Outcome, Outside]) -> None:
    """But for rounding, with steps that do not divide evenly and answers that weigh differently; and the first process
    speaks for both."""
    alone, (found, outside) = Outside(), together
    expected = run(tuning(spec), alone, 1)
    assert (found.metrics["processes"], expected.metrics["processes"]) == (2, 1)
    assert found.files.keys() == expected.files.keys()
    for name in (ADAPTER, PROJECTOR):
        theirs = load(expected.files[name])
        for key, tensor in load(found.files[name]).items():
            assert_close(tensor, theirs[key], atol=1e-4, rtol=1e-3)
    for mine, other in zip(found.metrics["curve"], expected.metrics["curve"], strict=True):
        for key in ("model", "epoch", "learning_rate"):
            assert mine[key] == other[key]
        for key in ("train_loss", "validation_loss"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4)
    assert [kind for kind, _ in outside.events] == [kind for kind, _ in alone.events]
    assert [f for k, f in outside.events if k == "dry_run"] == [f for k, f in alone.events if k == "dry_run"]


def test_packed_rows_are_shared_too(spec: LanguageModelSpec) -> None:
    """An odd number of conversations in each step, one after the other in rows."""
    work = tuning(spec, epochs=1, batch_size=5, gradient_accumulation=1, packing=True, projector_epochs=0)
    mine, theirs = (run(work, Outside(), processes) for processes in (2, 1))
    assert mine.metrics["processes"] == 2
    expected = load(theirs.files[ADAPTER])
    for key, tensor in load(mine.files[ADAPTER]).items():
        assert_close(tensor, expected[key], atol=1e-4, rtol=1e-3)


class KillsOne(Outside):
    """Keeps checkpoints; at the n-th batch the second process is killed."""

    def __init__(self, batch: int):
        super().__init__()
        self._left = batch
        self.ranks: list[int] = []

    def report(self, kind: str, **facts: Any) -> None:
        super().report(kind, **facts)
        self._left -= kind == "batch"
        if not self._left and not self.ranks:
            self.ranks = ranks_of(os.getpid())
            os.kill(self.ranks[1], signal.SIGKILL)


def test_a_killed_process_ends_the_attempt_and_the_next_goes_on(
    spec: LanguageModelSpec, together: tuple[Outcome, Outside]
) -> None:
    """From the last checkpoint, to the very same model; nobody is left behind."""
    whole, undisturbed = together
    outside = KillsOne(6)
    with pytest.raises(TrainingProcessError, match="process 2 of 2 was killed by SIGKILL"):
        run(tuning(spec), outside, 2)
    assert len(outside.ranks) == 2
    assert not any(map(is_alive, outside.ranks))
    again = Outside(saved=outside.saved)
    resumed = run(tuning(spec), again, 2)
    assert {name: resumed.files[name] for name in (ADAPTER, PROJECTOR, "test_items.jsonl")} == {
        name: whole.files[name] for name in (ADAPTER, PROJECTOR, "test_items.jsonl")
    }
    every, left = (sum(kind == "batch" for kind, _ in o.events) for o in (undisturbed, again))
    assert 0 < left <= every - 5
