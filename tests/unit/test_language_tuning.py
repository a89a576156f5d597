"""Tuning a tiny language model: what is read, that it learns, stops, goes on exactly, and what it leaves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.finetune.language.batches import pack, plan_steps, share_of
from services.finetune.language.data import Conversations, classes_of, make_examples
from services.finetune.language.evaluation import token_f1
from services.finetune.modelling import Outside as Where
from services.finetune.outcome import Outcome
from services.finetune.recipes.instruction import tune_language_model
from shared.conversations import MediaPart, Message, TextPart
from shared.errors import JobError
from shared.generation import Generation
from shared.language_tuning import InstructionRequest, LanguageTraining
from shared.ml.checkpoints import pack as checkpoint
from shared.ml.checkpoints import unpack
from shared.ml.language.generate import Prompted, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import TunedLanguageModel
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.testing.tiny import tiny_language_model
from tests.unit.finetune_data import Outside, Stopped, dataset, without_times

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(tiny_language_model(tmp_path_factory.mktemp("tiny")), device="cpu", precision="fp32")


def conversations(
    count: int, *, texts: Any = None, labels: Any = None, targets: Any = None, messages: Any = None,
    vectors: dict[Modality, NDArray[Any]] | None = None, present: Any = None, splits: Any = None,
) -> Conversations:  # fmt: skip
    """Items of a feature set; what is not given is missing."""
    items = dataset(vectors or {Modality.IMAGE: np.zeros((count, 1))}, labels, splits=splits, present=present)
    if vectors is None:
        items = items.only([])
    none = [None] * count
    return Conversations(items, texts or none, messages or none, targets or none)


def pictures(count: int = 60, *, missing: float = 0.0) -> Conversations:
    """Nothing but the picture tells the answer."""
    rng = np.random.default_rng(0)
    which = np.arange(count) % 2
    vectors = rng.normal(size=(count, 4)) + 4 * which[:, None]
    there = {Modality.IMAGE: rng.random(count) >= missing}
    labels = [["yes"] if w else ["no"] for w in which]
    return conversations(
        count, texts=["cat?"] * count, labels=labels, vectors={Modality.IMAGE: vectors}, present=there
    )  # fmt: skip


def request(**options: Any) -> InstructionRequest:
    training = {"epochs": 3, "batch_size": 8, "max_length": 64, "learning_rate": 0.005, "max_new_tokens": 8}
    training |= {"projector_learning_rate": 0.01}
    asked = {"type": "fine_tune", "method": "instruction", "features": "job-x"}
    given = {**training, **options.pop("training", {})}
    return InstructionRequest.model_validate({**asked, "training": given, **options})


def tune(base: LanguageModel, data: Conversations, outside: Outside | None = None, **options: Any) -> Outcome:
    start = options.pop("start", None)
    where = Where(outside or Outside(), CPU)
    found = tune_language_model(data, request(**options), base, where, start=start)
    assert found is not None
    return found


def user(*parts: Any) -> Message:
    return Message(role="user", content=list(parts))


def test_answers_come_from_messages_targets_or_labels() -> None:
    """In this order; the prompt puts what has no messages, and calls labels by their first word."""
    prompt = PromptTemplate(template="{image}Is it?\n{text}", verbalizers={"1": ["yes", "sure"]})
    talk = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    half = [user(TextPart(text="see "), MediaPart(type="image"))]
    data = conversations(
        5, texts=["a", None, "c", "d", "e"], targets=[None, "T", "3.5", None, None],
        labels=[["1"], [], ["1"], ["b", "1"], []], messages=[None, half, None, None, talk],
        vectors={Modality.IMAGE: np.arange(10).reshape(5, 2)},
        present={Modality.IMAGE: np.array([True, True, False, True, True])},
    )  # fmt: skip
    found = {e.id: e for e in make_examples(data, prompt)}
    assert [e.answer for e in found.values()] == ["yes", "T", "3.5", "yes, b", "Hello"]
    assert found["item-0000"].question == [user(MediaPart(type="image"), TextPart(text="Is it?\na"))]
    np.testing.assert_array_equal(found["item-0000"].media[0].vector, [0, 1])
    assert found["item-0001"].question == half
    assert found["item-0002"].media == []
    assert found["item-0004"].question == talk[:1]
    assert classes_of(list(found.values())) == []
    assert classes_of([found["item-0000"]]) == ["1"]
    nothing = conversations(2, texts=["a", "b"])
    with pytest.raises(JobError, match="No item has an answer"):
        make_examples(nothing, prompt)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 9))
def test_packing_keeps_every_example_once(tokens: list[int], most: int, seed: int) -> None:
    """Within room and number, and never two rows that would fit into one (of those that were open)."""
    rows = pack(tokens, 50, most, np.random.default_rng(seed))
    assert sorted(place for row in rows for place in row) == list(range(len(tokens)))
    assert all(sum(tokens[i] for i in row) <= 50 and len(row) <= most for row in rows)
    for place, row in enumerate(rows[1:], 1):
        first = tokens[row[0]]
        assert all(len(other) == most or sum(tokens[i] for i in other) + first > 50 for other in rows[:place])


def test_steps_are_made_of_passes() -> None:
    """As many as are accumulated; the last one has what is left."""
    training = LanguageTraining(batch_size=4, gradient_accumulation=3)
    steps = plan_steps(list(range(1, 31)), training, np.random.default_rng(0))
    assert [len(passes) for passes in steps] == [3, 3, 2]
    assert sorted(row for passes in steps for rows in passes for row in rows) == list(range(30))


@given(st.data(), st.booleans(), st.integers(1, 8), st.integers(1, 5))
def test_processes_share_a_step(data: st.DataObject, packing: bool, most: int, world_size: int) -> None:
    """Each example is somewhere, once; no pass has more than one may have, and one process does what there is."""
    tokens = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=60))
    training = LanguageTraining(batch_size=most, gradient_accumulation=8, packing=packing, max_length=50)
    for passes in plan_steps(tokens, training, np.random.default_rng(0)):
        shares = [share_of(passes, tokens, training, rank, world_size) for rank in range(world_size)]
        every = [rows for share in shares for rows in share]
        assert sorted(row for rows in every for row in rows) == sorted(row for rows in passes for row in rows)
        assert all(0 < len(rows) <= most and (not packing or sum(tokens[i] for i in rows) <= 50) for rows in every)
        assert max(map(len, shares)) <= len(passes)
        assert share_of(passes, tokens, training, 0, 1) == passes


def test_a_picture_is_learned_as_soft_tokens(base: LanguageModel) -> None:
    """The tuned model answers by what it sees, the base cannot; without the picture nor can the tuned one."""
    outside = Outside()
    found = tune(base, pictures(), outside, training={"epochs": 6, "projector_epochs": 2, "batch_size": 4})
    metrics = found.metrics
    assert metrics["test"]["accuracy"] > 0.9
    assert metrics["base"]["accuracy"] == 0.0
    assert metrics["without_media"]["accuracy"] < 0.7
    assert metrics["intervals"]["gain"]["low"] > 0.5
    assert [e["model"] for e in metrics["curve"]][:3] == ["projectors"] * 2 + ["tuning"]
    kinds = [kind for kind, _ in outside.events]
    assert kinds.index("dry_run") < kinds.index("batch") < kinds.index("epoch")
    json.dumps(outside.events, allow_nan=False)
    shown = next(facts for kind, facts in outside.events if kind == "dry_run")["shown"][0]
    assert shown["rendered"].startswith("<bos>Question:\n⟨media 0×4⟩cat?\n\nAnswer:\n")
    card = found.files["README.md"].decode()
    assert "| question | answer | base model | tuned model |" in card
    assert set(found.files) >= {
        "adapter_model.safetensors", "adapter_config.json", "projector.safetensors", "config.json", "metrics.json",
        "test_items.jsonl", "tensorboard/tuning/events.out.tfevents.0.trivium",
    }  # fmt: skip
    again = TunedLanguageModel.load(found.files, base)
    said = [json.loads(line) for line in found.files["test_items.jsonl"].splitlines()]
    data = pictures()
    rows = [data.items.ids.index(line["id"]) for line in said]
    drawn = Generation(temperature=0, max_tokens=8, stop=["\n"])
    asked = [
        Prompted([user(MediaPart(type="image"), TextPart(text="cat?"))], [Media(Modality.IMAGE, v)], drawn)
        for v in data.items.vectors[Modality.IMAGE][rows]
    ]
    assert [a.text for a in generate(again, asked)] == [line["tuned"] for line in said]
    again.close()


@pytest.mark.parametrize("adapter", ["lora", "prompt", "p_tuning", "prefix"])
def test_every_adapter_learns_and_stops_as_if_never_stopped(base: LanguageModel, adapter: str) -> None:
    """Whatever is trained: the loss falls, and a run that is stopped at any batch ends with the same bytes."""
    options: dict[str, Any] = {
        "training": {"adapter": adapter, "epochs": 2, "batch_size": 4, "gradient_accumulation": 2, "virtual_tokens": 4}
    }
    data = pictures(40, missing=0.2)
    whole = tune(base, data, **options)
    curve = [e["validation_loss"] for e in whole.metrics["curve"] if e["model"] == "tuning"]
    first = whole.metrics["curve"][0]["train_loss"]
    assert min(curve) < first
    outside = Outside(stop_at=17)
    with pytest.raises(Stopped):
        tune(base, data, outside, **options)
    assert outside.saved
    resumed = tune(base, data, Outside(saved=outside.saved), **options)
    for name in ("adapter_model.safetensors", "projector.safetensors", "test_items.jsonl"):
        assert resumed.files[name] == whole.files[name]
    clocks = {"tokens_per_second", "training_seconds"}
    kept = [{k: v for k, v in e.items() if k not in clocks} for e in resumed.metrics["curve"]]
    assert kept == [{k: v for k, v in e.items() if k not in clocks} for e in whole.metrics["curve"]]
    assert without_times(resumed.metrics["test"]) == without_times(whole.metrics["test"])


def test_packing_learns_the_same(base: LanguageModel) -> None:
    """A step on a packed row is one on the same conversations side by side."""
    options = {"epochs": 1, "lora_dropout": 0.0, "batch_size": 64, "max_length": 512, "projector_epochs": 0}
    data = conversations(14, texts=[f"q{i}" for i in range(14)], targets=[f"a{i}" for i in range(14)])
    packed, padded = (tune(base, data, training={**options, "packing": p}) for p in (True, False))
    for one, other in zip(packed.metrics["curve"], padded.metrics["curve"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)


def test_training_goes_on_from_a_tuned_model(base: LanguageModel) -> None:
    """It begins where that one ended, not at the base model."""
    data = pictures(40)
    first = tune(base, data, training={"epochs": 3})
    more = tune(base, data, start=first.files, training={"epochs": 1, "projector_epochs": 0, "learning_rate": 1e-5})
    ended = min(e["validation_loss"] for e in first.metrics["curve"])
    assert more.metrics["curve"][0]["validation_loss"] == pytest.approx(ended, rel=0.05)
    with pytest.raises(JobError) as caught:
        tune(base, data, start=first.files, training={"adapter": "prompt"})
    assert caught.value.error_code == "unsuitable_adapter"


def test_projectors_learn_alone_from_what_has_a_picture(base: LanguageModel) -> None:
    """Without an adapter, conversations without media teach nothing, however many there are, and break nothing."""
    data = pictures(60, missing=0.7)
    found = tune(base, data, training={"adapter": "none", "epochs": 2, "batch_size": 2})
    seen = sum(data.items.present[Modality.IMAGE])
    assert 0 < found.metrics["trained_tokens"] < found.metrics["dry_run"]["train"]["tokens"]
    assert found.metrics["steps"] <= 2 * seen / 2
    assert "projector.safetensors" in found.files


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_model_with_projectors_goes_on_with_words_alone(base: LanguageModel, adapter: str) -> None:
    """There is nothing for them to learn from: that phase is passed over; if it is all that there is, words say so."""
    first = tune(base, pictures(40), training={"adapter": adapter, "epochs": 1})
    words = conversations(40, texts=["cat?"] * 40, labels=[["no"], ["yes"]] * 20)
    if adapter == "none":
        with pytest.raises(JobError) as caught:
            tune(base, words, start=first.files, training={"adapter": adapter})
        assert caught.value.error_code == "nothing_to_train"
        return
    more = tune(base, words, start=first.files, training={"epochs": 1})
    assert [entry["model"] for entry in more.metrics["curve"]] == ["tuning"]
    assert more.files["projector.safetensors"] == first.files["projector.safetensors"]


def test_training_goes_on_from_a_checkpoint_of_an_earlier_release(base: LanguageModel) -> None:
    """Which did not count the steps of its epochs."""
    data, outside = pictures(40), Outside(stop_at=17)
    with pytest.raises(Stopped):
        tune(base, data, outside)
    tensors, facts = unpack(outside.saved["language"])
    assert facts["history"]
    for entry in facts["history"]:
        del entry["steps"]
    saved = {"language": checkpoint(tensors, facts)}
    assert tune(base, data, Outside(saved=saved)).files.keys() == tune(base, data).files.keys()


def test_early_stopping_keeps_the_best_epoch(base: LanguageModel) -> None:
    """A rate that spoils everything: it stops, and what is kept is the best that was seen."""
    data = pictures(40)
    found = tune(base, data, training={"epochs": 30, "patience": 2, "learning_rate": 0.5, "projector_epochs": 0})
    losses = [e["validation_loss"] for e in found.metrics["curve"]]
    assert len(losses) == int(np.argmin(losses)) + 3 < 30


def test_a_loss_that_is_no_number_is_said_in_words(base: LanguageModel) -> None:
    """With what to change."""
    data = pictures(40)
    rows = data.items.vectors[Modality.IMAGE].copy()
    rows[:, 0] = np.inf
    broken = replace(data, items=replace(data.items, vectors={Modality.IMAGE: rows}))
    with pytest.raises(JobError, match=r"learning_rate") as caught:
        tune(base, broken)
    assert caught.value.error_code == "training_diverged"


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        (lambda: pictures(6), {}, "too_few_items"),
        (lambda: conversations(20, texts=["a"] * 20), {}, "no_answers"),
        (lambda: conversations(20, texts=["a"] * 20, targets=["b"] * 20), {"training": {"adapter": "none"}},
         "nothing_to_train"),
        (lambda: conversations(20, texts=["a"] * 20, targets=["b" * 99] * 20), {}, "too_few_items"),
        (lambda: conversations(20, texts=["a"] * 20, targets=["b"] * 15 + ["b" * 99] * 5,
                               splits=["train"] * 10 + ["validation"] * 5 + ["test"] * 5), {}, "too_few_items"),
        (lambda: pictures(20), {"training": {"lora_targets": ["nowhere"]}}, "unsuitable_adapter"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(
    base: LanguageModel, data: Callable[[], Conversations], options: dict[str, Any], code: str
) -> None:
    """Each with a stable code."""
    with pytest.raises(JobError) as caught:
        tune(base, data(), **options)
    assert caught.value.error_code == code


def test_long_questions_are_cut_and_counted(base: LanguageModel) -> None:
    """The dry run says so before anything is trained."""
    texts = ["x" * (100 if i % 4 == 0 else 5) for i in range(24)]
    outside = Outside()
    found = tune(base, conversations(24, texts=texts, targets=["ab"] * 24), outside, training={"epochs": 1})
    reads = [facts for kind, facts in outside.events if kind == "dry_run"]
    assert sum(facts["cut"]["examples"] for facts in reads) == 6
    assert "questions_cut" in {check["code"] for check in found.metrics["checks"]}
    assert found.metrics["main_score"] == "exact_match"


@pytest.mark.parametrize(
    ("wanted", "said", "score"),
    [("a red cat", "the red cat", 2 / 3), ("No.", "no", 1.0), ("猫和狗", "狗", 0.5), ("", "", 1.0), ("a", "", 0.0)],
)
def test_token_f1(wanted: str, said: str, score: float) -> None:
    """Over words; over characters of Chinese."""
    assert token_f1(wanted, said) == pytest.approx(score)


def test_files_are_safe_to_read(base: LanguageModel, tmp_path: Path) -> None:
    """Weights are safetensors, the rest is text."""
    found = tune(base, pictures(40), training={"epochs": 1})
    assert not [name for name in found.files if Path(name).suffix in (".bin", ".pt", ".pkl")]
