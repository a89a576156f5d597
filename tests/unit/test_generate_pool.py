"""The generate pool in one process: models that share a base, turns, what is asked of items, what answers stand for."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.finetune.generate import models as models_module
from services.finetune.generate.models import LanguageModelCache
from services.finetune.generate.predict import Generate, Part, answers_table
from services.finetune.generate.questions import questions
from services.finetune.generate.turns import in_turns
from services.finetune.language.labels import label_of
from shared.conversations import Message, markers
from shared.generation import Generation
from shared.ml.language.choosing import label_probabilities
from shared.ml.language.generate import Generated, Piece, Prompted, decode, generate
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.tuned import TunedConfig, TunedLanguageModel
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.testing.models import tune_language_model
from shared.testing.tiny import tiny_language_model
from shared.worker.control import Control


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(tiny_language_model(tmp_path_factory.mktemp("tiny")), device="cpu", precision="fp32")


def prompts(*texts: str, max_tokens: int = 12) -> list[Prompted]:
    generation = Generation(temperature=0, max_tokens=max_tokens)
    return [Prompted([Message(role="user", content=text)], (), generation) for text in texts]


def test_models_on_one_base_take_turns_and_each_keeps_its_own_voice(base: LanguageModel) -> None:
    tuned = [tune_language_model(base, {}, seed=seed) for seed in (1, 2)]
    speakers = [TunedLanguageModel.plain(base), *tuned]
    asked = prompts("Why?", "And who has painted the sky above the port?")
    expected = [generate(model, asked) for model in speakers]
    assert len({answers[0].text for answers in expected}) == 3
    computing, found = threading.Lock(), [dict[int, Generated](), {}, {}]
    running = [in_turns(decode(model, asked), computing) for model in speakers]
    going = [True]
    while any(going):
        going = [_go_on(steps, answers) for steps, answers in zip(running, found, strict=True)]
        assert not computing.locked(), "between two steps others may compute"
    assert [[answers[0], answers[1]] for answers in found] == expected
    for model in tuned:
        model.close()


def _go_on(steps: Any, answers: dict[int, Generated]) -> bool:
    step: list[Piece] | None = next(steps, None)
    answers |= {piece.place: piece.end for piece in step or () if piece.end is not None}
    return step is not None


def test_pieces_make_up_the_answers_and_who_is_gone_leaves_the_batch(base: LanguageModel) -> None:
    asked = prompts("Why?", "So?", "Tell me")
    expected = generate(base, asked)
    texts, gone = ["", "", ""], set[int]()
    ended = {}
    for step in decode(base, asked, gone=gone.__contains__):
        for piece in step:
            texts[piece.place] += piece.text
            if piece.end is not None:
                ended[piece.place] = piece.end
        gone.add(1)
    assert ended == {0: expected[0], 2: expected[2]}
    assert (texts[0], texts[2]) == (expected[0].text, expected[2].text)
    assert len(texts[1]) < len(expected[1].text)


WORDS = {"cat": "animal", "dog": "animal", "plant": "plant", "plant pot": "thing"}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("cat", "animal"), (" Dog.\n", "animal"), ("PLANT", "plant"), ("plant pot, I think", "thing"),
        ("Plant!", "plant"), ("a cat", None), ("catalogue", None), ("", None), ("“dog”", None),
    ],
)  # fmt: skip
def test_an_answer_stands_for_a_label(answer: str, label: str | None) -> None:
    assert label_of(answer, WORDS) == label


@given(st.text(), st.sampled_from(sorted(WORDS)), st.sampled_from([" ", ".", "\n", ", "]))
def test_whatever_follows_a_word_the_longest_word_counts(rest: str, word: str, between: str) -> None:
    found = label_of(f"{word}{between}{rest}", WORDS)
    assert found in {WORDS[word], "thing"}


def table(**columns: list[Any]) -> pa.Table:
    count = len(next(iter(columns.values())))
    return pa.table({"id": [f"item-{i}" for i in range(count)], **columns})


def test_items_are_asked_their_own_messages_or_else_the_prompt() -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Learned."},
    ]
    image = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    features = table(
        messages=pa.array([json.dumps(turns), None, None]), text=[None, "b", "c"], image_vector=image
    )  # fmt: skip
    found = questions(features, {Modality.IMAGE: 2}, PromptTemplate(template="{image}{audio}Of {text}?"))
    assert [[m.role for m in one.conversation] for one in found] == [["user"]] * 3
    assert [one.conversation[0].text for one in found] == ["Who?", "Of b?", "Of c?"]
    assert [markers(one.conversation) for one in found] == [["image"], [], ["image"]]
    vectors = [medium.vector for one in found for medium in one.media]
    assert np.array_equal(np.stack([v for v in vectors if v is not None]), [[1, 2], [3, 4]])


def test_a_part_of_answers_has_a_row_for_every_item() -> None:
    columns = {name: ["x", "y"] for name in ("target", "split", "metadata")}
    features = table(label=[["a"], []], text=["a", "b"], **columns)
    part = Part(
        features, {"cat": "animal"}, {}, {0: Generated("Cat.", "stop", 5, 2)}, {1: "conversation_impossible: …"}
    )
    rows = answers_table(part).to_pylist()
    assert [row["prediction"] for row in rows] == ["animal", None]
    assert [row["answer"] for row in rows] == ["Cat.", None]
    assert [row["finish_reason"] for row in rows] == ["stop", None]
    assert [row["completion_tokens"] for row in rows] == [2, None]
    assert [row["error"] for row in rows] == [None, "conversation_impossible: …"]


def test_a_model_that_chooses_by_likelihood_says_how_likely_each_label_is(base: LanguageModel) -> None:
    """As the library does for all rows together; a row that cannot be asked about has nothing."""
    columns = {name: [*"xyz"] for name in ("target", "split", "metadata")}
    features = table(label=[[], [], []], text=[*"abc"], **columns)
    prompt, labels = PromptTemplate(template="{text}", verbalizers={"animal": ["cat", "dog"]}), ["animal", "plant"]
    config = TunedConfig(
        language_model="tiny", fingerprint=base.fingerprint, labels=labels, by_likelihood=True, calibration=[0.7, 0.3]
    )  # fmt: skip
    model = TunedLanguageModel(base, config, None, {})
    asked = dict(enumerate(prompts("Why?", "What now, then?")))
    part = Part(features, prompts=asked, errors={2: "answer_too_long: …"}, prompt=prompt, labels=labels)

    class Models:
        computing = threading.Lock()

    Generate(None, Models())._choose(model, part, Control(0))  # type: ignore[arg-type]  # it needs no more
    expected = label_probabilities(model, list(asked.values()), prompt, labels, calibration=config.calibration)
    rows = answers_table(part).to_pylist()
    assert [row["prediction"] for row in rows] == [*(labels[place] for place in expected.argmax(axis=1)), None]
    assert [row["probability"] for row in rows[:2]] == pytest.approx(expected.max(axis=1), abs=1e-5)
    assert [row["probabilities"] for row in rows[:2]] == [pytest.approx(row, abs=1e-5) for row in expected]
    assert (rows[2]["probabilities"], rows[2]["error"]) == (None, "answer_too_long: …")


class _Context:
    """What the cache needs of a WorkerContext, for base models alone."""

    def __init__(self, folder: Path, limit: int):
        specs = [tiny_language_model(folder / name).model_copy(update={"id": name}) for name in ("a", "b", "c")]
        self.language_models = {spec.id: spec for spec in specs}
        self.settings = self
        self.worker = self
        self.model_memory_bytes, self.device, self.precision = limit, "cpu", "fp32"


def test_the_least_recently_used_model_that_nobody_uses_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each base model seems to take 10 bytes, and 25 are allowed."""
    taken = iter(range(0, 1000, 10))
    monkeypatch.setattr(models_module, "resident_bytes", lambda: next(taken))
    cache = LanguageModelCache(_Context(tmp_path, 25))  # type: ignore[arg-type]
    control = Control(0)
    with cache.held("a", "t", control) as first:
        assert cache.get("a", "other tenant", control) is first, "the catalogue's models are everybody's"
        cache.get("b", "t", control)
        cache.get("c", "t", control)
        assert cache.ids() == ["a", "c"]
    cache.get("b", "t", control)
    assert cache.ids() == ["c", "b"]
