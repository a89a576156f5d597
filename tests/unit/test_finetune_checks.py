"""Each check finds what it is for, and nothing on sound data."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from services.finetune.checks import Finding, check_alone, check_items, check_parts
from services.finetune.data import Dataset
from services.finetune.leaks import check_leaks
from services.finetune.problem import Problem
from shared.ml.splits import Parts
from shared.ml.trained import Task
from shared.queues import Modality
from tests.unit.finetune_data import blobs, dataset

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE
PARTS = Parts(np.arange(0, 180), np.arange(180, 240), np.arange(240, 300))


def problem_of(data: Dataset, parts: Parts = PARTS) -> Problem:
    classes = sorted({labels[0] for labels in data.labels})
    answers = np.array([classes.index(labels[0]) for labels in data.labels])
    return Problem(Task.SINGLE_LABEL, answers, classes).with_known_first(parts.train)


def codes(findings: Iterable[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def found(data: Dataset, parts: Parts = PARTS) -> set[str]:
    problem = problem_of(data, parts)
    return codes([*check_parts(data, problem, parts), *check_leaks(data, problem, parts, np.random.default_rng(0))])


def with_labels(data: Dataset, change: dict[int, str]) -> Dataset:
    return replace(data, labels=[[change[i]] if i in change else labels for i, labels in enumerate(data.labels)])


def with_rows(data: Dataset, **rows: np.ndarray) -> Dataset:
    return replace(data, vectors=data.vectors | {Modality(m): r.astype(np.float32) for m, r in rows.items()})


@pytest.fixture
def data() -> Dataset:
    return blobs(300)


def test_sound_data(data: Dataset) -> None:
    """Nothing to say."""
    assert found(data) == set()
    assert check_items(data) == []


def test_copies_in_two_parts(data: Dataset) -> None:
    """Exact ones, and ones that differ a little; copies within training are no harm."""
    text, image = data.vectors[TEXT].copy(), data.vectors[IMAGE].copy()
    sound = data.vectors[Modality.AUDIO].copy()
    for rows in (text, image, sound):
        rows[250], rows[5] = rows[3], rows[4]
    assert found(with_rows(data, text=text, image=image, audio=sound)) == {"duplicates_across_splits"}
    assert found(with_rows(data, text=text + 1e-4 * (np.arange(300) == 250)[:, None], image=image, audio=sound)) == {
        "near_duplicates_across_splits"
    }
    alike = with_rows(data, text=text, image=image, audio=sound)
    [finding] = check_leaks(alike, problem_of(alike), PARTS, np.random.default_rng(0))
    assert "item-0250 = item-0003" in finding.message


def test_the_same_picture_with_another_text_is_no_copy(data: Dataset) -> None:
    """All modalities have to agree."""
    image = data.vectors[IMAGE].copy()
    image[250] = image[3]
    assert found(with_rows(data, image=image)) == set()


def test_a_component_that_gives_the_answer_away(data: Dataset) -> None:
    """For classes and for numbers."""
    text = data.vectors[TEXT].copy()
    text[:, 2] = problem_of(data).answers + 0.01 * np.random.default_rng(0).normal(size=300)
    assert found(with_rows(data, text=text)) == {"telltale_column"}
    values = Problem(Task.REGRESSION, text[:, 2].astype(np.float64) * -3, [])
    findings = check_leaks(with_rows(data, text=text), values, PARTS, np.random.default_rng(0))
    assert codes(findings) == {"telltale_column"}


def test_classes(data: Dataset) -> None:
    """Rare ones, ones that training lacks, ones that are not tested."""
    assert found(with_labels(data, {0: "rare", 250: "rare"})) == {"class_too_small", "imbalance"}
    assert found(with_labels(data, dict.fromkeys(range(250, 260), "new"))) == {"class_missing_in_training"}
    untested = with_labels(data, dict.fromkeys(range(160, 220), "untested"))
    assert found(untested) == {"class_missing_in_test"}
    new = with_labels(data, {250: "new", 200: "new"})
    told = {finding.code: finding.message for finding in check_parts(new, problem_of(new), PARTS)}
    assert "'new'" in told["class_missing_in_training"]
    assert "2 items" in told["class_missing_in_training"]


def test_a_label_that_all_items_have(data: Dataset) -> None:
    """Among several labels."""
    answers = np.stack([np.ones(300), np.arange(300) % 2], axis=1)
    several = Problem(Task.MULTI_LABEL, answers, ["always", "b"], known=2)
    assert codes(check_parts(data, several, PARTS)) == {"constant_class"}


def test_components_that_are_the_same_everywhere(data: Dataset) -> None:
    """Many are worth a warning."""
    text = data.vectors[TEXT].copy()
    text[:, :2] = 1
    [finding] = check_parts(with_rows(data, text=text), problem_of(data), PARTS)
    assert (finding.code, finding.severity) == ("constant_columns", "info")
    text[:, :5] = 1
    [finding] = check_parts(with_rows(data, text=text), problem_of(data), PARTS)
    assert finding.severity == "warning"
    assert "5 of 6" in finding.message


def test_modalities_that_are_missing(data: Dataset) -> None:
    """Evenly: a word. Unevenly: a warning."""
    rng = np.random.default_rng(0)
    even = replace(data, present=data.present | {TEXT: rng.random(300) < 0.8})
    assert {(f.code, f.severity) for f in check_parts(even, problem_of(data), PARTS)} == {("missing_modality", "info")}
    uneven = replace(data, present=data.present | {TEXT: np.arange(300) < 240})
    [finding] = check_parts(uneven, problem_of(data), PARTS)
    assert finding.severity == "warning"
    assert "train 100%, validation 100%, test 0%" in finding.message


def test_few_items(data: Dataset) -> None:
    """To train on, to choose by, to test on."""
    parts = Parts(np.arange(0, 90), np.arange(90, 120), np.arange(120, 150))
    assert found(data.take(range(150)), parts) == {"few_training_items", "few_validation_items", "few_test_items"}


def test_order_and_ids(data: Dataset) -> None:
    """They hold the label: no harm by itself, but worth a look."""
    ordered = data.take(sorted(range(300), key=lambda i: data.labels[i]))
    assert codes(check_items(ordered)) == {"sorted_by_label"}
    named = replace(data, ids=[f"{labels[0]}/{i}.png" for i, labels in enumerate(data.labels)])
    assert codes(check_items(named)) == {"label_in_id"}
    assert check_items(dataset({TEXT: np.ones((60, 2))})) == []


def test_scores_that_are_odd() -> None:
    """A modality that knows everything, and one that needs no other."""

    def row(score: float, there: float) -> dict[str, float]:
        return {"score": score, "score_there": there}

    assert check_alone({"fused": row(0.9, 0.9), "text": row(0.8, 0.85), "image": row(0.5, 0.6)}) == []
    assert codes(check_alone({"fused": row(0.95, 0.95), "text": row(0.9, 1.0), "image": row(0.5, 0.6)})) == {
        "possible_leak"
    }
    assert codes(check_alone({"fused": row(0.7, 0.7), "text": row(0.8, 0.8), "image": row(0.5, 0.6)})) == {
        "modality_beats_fusion"
    }
