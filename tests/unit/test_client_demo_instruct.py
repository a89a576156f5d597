"""What the demo of instruction tuning asks, and what it says of the answers."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from services.client.demo import instruct_report
from services.client.demo.instruct import (
    LEARNED,
    SHOWN,
    SPEAKERS,
    Answered,
    Tuned,
    content,
    find_problems,
    halves_right,
    questions,
    read_answers,
)
from services.client.demo.sample import Sample
from shared.queues import Modality
from shared.schemas import FineTuned


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample.read()


def interval(score: float, reach: float = 0.1) -> dict[str, float]:
    return {"score": score, "low": score - reach, "high": score + reach}


@pytest.fixture
def tuned() -> Tuned:
    """Two items in three right; once the voice is wrong, once both."""
    answers = [
        Answered("emoji-1f355", "food, woman", "The picture shows food", "food, woman"),
        Answered("emoji-1f1ea-1f1f8", "flag, man", "", "flag, man"),
        Answered("emoji-1f47d", "face, man", "face, woman", "face, woman"),
    ]
    metrics = {"intervals": {"base": interval(0), "tuned": interval(0.8), "without_media": interval(0.2),
                             "gain": interval(0.8)}}  # fmt: skip
    model = FineTuned(encoders={}, fusions=[], classes=[], multi_label=False, metrics=metrics)
    return Tuned("model-1", model, Path(), answers)


def test_questions_have_both_media_and_an_answer_from_both(sample: Sample) -> None:
    """As many as are wanted, none twice, and each answer says what the item's own label and voice say."""
    items = questions(sample)
    counts = Counter(item["split"] for item in items)
    assert {split: counts[split] for split in LEARNED} == LEARNED
    assert counts["test"] > 50
    assert len({item["id"] for item in items}) == len(items)
    known = {item["id"]: item for item in sample.items}
    for item in items:
        shown, speaker = item["target"].split(", ")
        assert shown == SHOWN[known[item["id"]]["label"]]
        assert speaker == SPEAKERS[known[item["id"]]["metadata"]["voice"].split("+")[1][0]]
        assert item["split"] == known[item["id"]]["split"]
    assert len({item["target"] for item in items}) == len(SHOWN) * len(SPEAKERS)


def test_answers_may_hold_whatever_a_model_says(tmp_path: Path) -> None:
    """Unicode has more ends of lines than JSON lines have."""
    said = {"id": "a", "answer": "food, man", "base": "one\u2028two\x85three", "tuned": "food, man"}
    (tmp_path / "test_items.jsonl").write_text(json.dumps(said, ensure_ascii=False) + "\n")
    assert read_answers(tmp_path) == [Answered(*said.values())]


def test_the_archive_holds_what_the_manifest_names(sample: Sample, tmp_path: Path) -> None:
    items = questions(sample)[:5]
    with tarfile.open(sample.write(items, tmp_path / "questions.tar")) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]  # all are files
    assert [json.loads(line) for line in files.pop("manifest.jsonl").splitlines()] == items
    assert files == {i["image"]: sample.pictures[i["id"]] for i in items} | {
        i["audio"]: sample.sounds[i["id"]] for i in items
    }


def test_a_chat_is_asked_what_was_learned(sample: Sample) -> None:
    """The same words with the media between them."""
    asked = content(questions(sample)[0]["id"], sample)
    assert [part["type"] for part in asked] == ["text", "image_url", "text", "input_audio", "text"]


def test_answers_are_read(tmp_path: Path) -> None:
    line = {"id": "a", "question": "?", "answer": "flag, man", "base": "no", "tuned": "flag, man"}
    (tmp_path / "test_items.jsonl").write_text(json.dumps(line) + "\n")
    assert read_answers(tmp_path) == [Answered("a", "flag, man", "no", "flag, man")]


def test_the_tables(sample: Sample, tuned: Tuned) -> None:
    """Every right answer has a row; what is not an answer at all is right in nothing."""
    assert halves_right(tuned) == {
        "base": {Modality.IMAGE: 1 / 3, Modality.AUDIO: 0},
        "tuned": {Modality.IMAGE: 1, Modality.AUDIO: 2 / 3},
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(instruct_report.answers_table(tuned, sample.names))
    console.print(instruct_report.scores_table(tuned, halves_right(tuned)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for words in ("pizza", "Spain", "alien", "food, woman", "(nothing)", "80% (70% to 90%)", "67%"):
        assert words in shown


def test_problems(tuned: Tuned) -> None:
    """None if the answers are better than before, need the media, and are the same in a chat."""
    assert find_problems(tuned, "food, woman") == []
    assert "in a chat it says" in find_problems(tuned, "flag, man")[0]
    for name, score, words in (("gain", 0.05, "no better"), ("without_media", 0.75, "as well without")):
        changed = tuned.scores | {name: interval(score)}
        worse = replace(tuned, model=tuned.model.model_copy(update={"metrics": {"intervals": changed}}))
        [problem] = find_problems(worse, "food, woman")
        assert words in problem
