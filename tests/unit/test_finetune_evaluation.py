"""Scores against numbers worked out by hand, and against definitions computed another way."""

import math
from itertools import pairwise, permutations
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm
from sklearn import metrics

from services.finetune.ensemble import select_ensemble
from services.finetune.evaluation import calibration_error, evaluate
from services.finetune.problem import Problem
from services.finetune.retrieval import mean_reciprocal_rank, retrieval
from services.finetune.robustness import robustness
from services.finetune.scores import main_score, main_score_interval
from shared.ml.shapley import shapley_values
from shared.ml.trained import Task
from shared.queues import Modality
from tests.unit.finetune_data import dataset

CLASSES = ["a", "b", "c"]


def test_scores_of_single_labels_by_hand() -> None:
    """Five items: two of a (one said), two of b (both said), one of c, which is in no prediction."""
    answers = np.array([0, 0, 1, 1, 2])
    said = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.1, 0.5, 0.4]])
    found = evaluate(Task.SINGLE_LABEL, answers, said, CLASSES)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 1, 0]]
    a, b, c = (found["classes"][name] for name in CLASSES)
    assert (a["precision"], a["recall"], a["f1"]) == (1, 0.5, pytest.approx(2 / 3))
    assert (b["precision"], b["recall"], b["f1"]) == (0.5, 1, pytest.approx(2 / 3))
    assert (c["precision"], c["recall"], c["f1"]) == (None, 0, 0)
    assert found["precision_macro"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["recall_macro"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["f1_micro"] == found["precision_micro"] == pytest.approx(3 / 5)
    assert c["auroc"] == 1  # 0.4 is above all others
    assert b["auroc"] == 1
    assert a["auroc"] == 1
    # Confidence 0.8 (right), 0.6 (wrong), 0.7 (right), 0.8 (right), 0.5 (wrong); the two of 0.8 share a bin.
    assert found["calibration_error"] == pytest.approx((abs(2 * 0.8 - 2) + 0.6 + 0.3 + 0.5) / 5)


def test_a_class_without_training_items_counts_as_mistakes() -> None:
    """The model knows the first two classes only."""
    found = evaluate(Task.SINGLE_LABEL, np.array([0, 1, 2]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), CLASSES)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["classes"]["c"] == {
        "items": 1, "precision": None, "recall": 0, "f1": 0, "auroc": 0.5, "average_precision": pytest.approx(1 / 3),
    }  # fmt: skip


def test_undefined_scores_are_null() -> None:
    """One class among the test items: no curve, no correlation, no variance to explain."""
    found = evaluate(Task.SINGLE_LABEL, np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    assert found["auroc"] is None
    assert found["classes"]["b"] == dict.fromkeys(("precision", "recall", "f1", "auroc", "average_precision")) | {
        "items": 0
    }
    values = evaluate(Task.REGRESSION, np.array([1.0, 1.0]), np.array([1.0, 2.0]), [])
    assert (values["r2"], values["spearman"], values["mae"]) == (None, None, 0.5)


def test_scores_of_several_labels_by_hand() -> None:
    """Three items, two labels."""
    applies = np.array([[1, 0], [1, 1], [0, 1]], np.float64)
    said = np.array([[0.9, 0.2], [0.4, 0.8], [0.6, 0.7]])
    found = evaluate(Task.MULTI_LABEL, applies, said, ["a", "b"])
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["hamming_loss"] == pytest.approx(2 / 6)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["f1_macro"] == pytest.approx((0.5 + 1) / 2)
    # Of a, by probability: right, wrong, right. Of b: right, right, wrong.
    assert found["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_scores_of_values_by_hand() -> None:
    """MSE without the half of the training loss."""
    found = evaluate(Task.REGRESSION, np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 3.0]), [])
    assert found["mse"] == pytest.approx(2 / 3)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["r2"] == pytest.approx(1 - 2 / (16 / 9 + 1 / 9 + 25 / 9))
    assert found["spearman"] == pytest.approx(math.sqrt(3) / 2)


@settings(max_examples=25)
@given(st.integers(6, 40), st.integers(2, 4), st.integers(0, 999))
def test_scores_of_classes_are_scikit_learns(count: int, classes: int, seed: int) -> None:
    """On the same predictions, single and several labels: averages, areas, confusion; and ECE bin by bin."""
    rng = np.random.default_rng(seed)
    names = [str(c) for c in range(classes)]
    answers = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes)])  # each occurs
    said = rng.dirichlet(np.ones(classes), count)
    best = said.argmax(axis=1)
    found = evaluate(Task.SINGLE_LABEL, answers, said, names)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(answers, best))
    assert found["confusion"] == metrics.confusion_matrix(answers, best).tolist()
    one_hot = np.eye(classes)[answers]
    expected = metrics.roc_auc_score(one_hot, said, average="macro")  # one class against the rest
    assert found["auroc"] == pytest.approx(expected)
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(one_hot, said, average="macro"))
    assert found["calibration_error"] == pytest.approx(error_bin_by_bin(said.max(axis=1), best == answers))
    sets, probabilities = one_hot.copy(), rng.random((count, classes))
    sets[classes:] = rng.random((count - classes, classes)) < 0.5
    several = evaluate(Task.MULTI_LABEL, sets, probabilities, names)
    assert several["auroc"] == pytest.approx(metrics.roc_auc_score(sets, probabilities, average="macro"))
    assert several["subset_accuracy"] == pytest.approx(metrics.accuracy_score(sets, probabilities >= 0.5))
    for scores, right, guessed in ((found, answers, best), (several, sets, (probabilities >= 0.5).astype(float))):
        for average in ("macro", "micro"):
            for name in ("precision", "recall", "f1"):
                reference = getattr(metrics, f"{name}_score")(right, guessed, average=average, zero_division=0)
                assert scores[f"{name}_{average}"] == pytest.approx(reference)
        each = metrics.f1_score(right, guessed, average=None, zero_division=0)
        assert [scores["classes"][name]["f1"] for name in names] == pytest.approx(each.tolist())


def error_bin_by_bin(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, equation 5, as it stands there."""
    total = 0.0
    for low in range(15):
        chosen = (confidence >= low / 15) & ((confidence < (low + 1) / 15) | (low == 14))
        if chosen.any():
            total += chosen.sum() / len(right) * abs(right[chosen].mean() - confidence[chosen].mean())
    return total


def test_calibration_of_sure_and_of_honest_models() -> None:
    """Always sure and always wrong is 1; half sure and right half of the time is 0."""
    assert calibration_error(np.ones(4), np.zeros(4, np.bool_)) == 1
    assert calibration_error(np.full(4, 0.5), np.array([True, False, True, False])) == 0


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(2, 4), st.integers(0, 99))
def test_the_main_score_is_the_one_of_the_evaluation(count: int, classes: int, seed: int) -> None:
    """Summed over items it is what scikit-learn computes."""
    rng = np.random.default_rng(seed)
    outputs, names = rng.dirichlet(np.ones(classes), count), [str(c) for c in range(classes)]
    labels, sets = rng.integers(classes, size=count), (rng.random((count, classes)) < 0.4).astype(np.float64)
    values, said = rng.normal(size=count), rng.normal(size=count)
    for task, answers, given_outputs, name in (
        (Task.SINGLE_LABEL, labels, outputs, "accuracy"),
        (Task.MULTI_LABEL, sets, outputs, "f1_micro"),
        (Task.REGRESSION, values, said, "r2"),
    ):
        expected = evaluate(task, answers, given_outputs, names)[name]
        score = main_score(task, answers, given_outputs)
        assert (expected is None and math.isnan(score)) or score == pytest.approx(expected, abs=1e-9)


def test_the_interval_is_that_of_the_binomial() -> None:
    """For an accuracy of 0.8 on 400 items: ± 1.96·√(0.8·0.2/400), nearly; and the same draws for the same seed."""
    answers = np.zeros(400, np.int64)
    outputs = np.where(np.arange(400)[:, None] < 320, [[0.9, 0.1]], [[0.1, 0.9]])
    found = main_score_interval(Task.SINGLE_LABEL, answers, outputs, np.random.default_rng(0))
    assert found.score == 0.8
    assert found.low == pytest.approx(0.8 - 0.0392, abs=0.005)
    assert found.high == pytest.approx(0.8 + 0.0392, abs=0.005)
    assert found == main_score_interval(Task.SINGLE_LABEL, answers, outputs, np.random.default_rng(0))


@given(st.integers(1, 4), st.integers(0, 99))
def test_shapley_values_are_the_mean_over_all_orders(count: int, seed: int) -> None:
    """The definition itself; they add up, and who adds nothing gets nothing."""
    players = [Modality.TEXT, Modality.IMAGE, Modality.AUDIO, "idle"][-count:]
    rng = np.random.default_rng(seed)
    game = {frozenset(p for p in players if p != "idle" and rng.random() < 0.5): rng.normal(size=2) for _ in range(30)}

    def value(subset: frozenset) -> np.ndarray:
        return game.get(subset - {"idle"}, np.zeros(2))

    shares = shapley_values(value, players)
    orders = list(permutations(players))
    for player in players:
        gains = []
        for order in orders:
            before = frozenset(order[: order.index(player)])
            gains.append(value(before | {player}) - value(before))
        np.testing.assert_allclose(shares[player], np.mean(gains, axis=0), atol=1e-12)
    np.testing.assert_allclose(sum(shares.values()), value(frozenset(players)) - value(frozenset()), atol=1e-12)
    np.testing.assert_array_equal(shares["idle"], 0)


@given(hnp.arrays(np.float64, (5, 12, 3), elements=st.floats(0.01, 1)), st.integers(0, 9))
def test_an_ensemble_is_never_worse_than_its_best_member(raw: np.ndarray, seed: int) -> None:
    """On the items it was selected by."""
    models = raw / raw.sum(axis=2, keepdims=True)
    answers = np.random.default_rng(seed).integers(3, size=12)
    problem, rows = Problem(Task.SINGLE_LABEL, answers, CLASSES, known=3), np.arange(12)
    counts = np.array(select_ensemble(list(models), lambda said: problem.loss(said, rows)))
    together = np.tensordot(counts / counts.sum(), models, axes=1)
    assert problem.loss(together, rows) <= min(problem.loss(said, rows) for said in models) + 1e-12


def test_an_ensemble_of_opposite_errors() -> None:
    """Two models that are wrong in different places are both taken, a useless third is not."""
    answers = np.array([0, 0, 1, 1])
    sure, unsure = [0.95, 0.05], [0.45, 0.55]
    first = np.array([sure, unsure, sure[::-1], unsure[::-1]])
    second = np.array([unsure, sure, unsure[::-1], sure[::-1]])
    problem, rows = Problem(Task.SINGLE_LABEL, answers, ["a", "b"], known=2), np.arange(4)
    counts = select_ensemble([first, second, first[:, ::-1]], lambda said: problem.loss(said, rows))
    assert counts[0] == counts[1] > 0 == counts[2]


def test_losses_by_hand() -> None:
    """With weights; the mean over classes where there are several labels."""
    rows = np.arange(2)
    single = Problem(Task.SINGLE_LABEL, np.array([0, 1]), ["a", "b"], 2, np.array([1.0, 3.0]))
    said = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert single.loss(said, rows) == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)
    several = Problem(Task.MULTI_LABEL, np.array([[1.0, 0.0], [1.0, 1.0]]), ["a", "b"], 2)
    expected = -(math.log(0.5) + math.log(0.5) + math.log(0.75) + math.log(0.25)) / 4
    assert several.loss(said, rows) == pytest.approx(expected)
    values = Problem(Task.REGRESSION, np.array([1.0, 2.0]), [])
    assert values.loss(np.array([2.0, 4.0]), rows) == pytest.approx(2.5)


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(0, 999))
def test_retrieval_is_a_count_item_by_item(count: int, seed: int) -> None:
    """Recall and median rank in all six directions, from the ranks that sorting gives."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 4))
    projections, present = {}, {}
    for modality in Modality:
        rows = hidden + rng.normal(size=(count, 4))
        projections[modality] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        present[modality] = rng.random(count) < 0.8
        present[modality][:2] = True
    found = retrieval(projections, present)
    assert len(found) == 6
    for a, b in permutations(Modality, 2):
        both = np.flatnonzero(present[a] & present[b])
        ranks = [
            [*both[np.argsort(-(projections[b][both] @ projections[a][row]), kind="stable")]].index(row) + 1
            for row in both
        ]
        scores = found[f"{a.value}→{b.value}"]
        for k in (1, 5, 10):
            assert scores[f"recall@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        assert scores["median_rank"] == np.median(ranks)


def test_the_area_under_the_robustness_curve() -> None:
    """MultiBench's: by trapezoids over the levels, which are not equally far apart, in units of the score;
    a model that needs one modality alone falls with it as it should."""

    class Reader:
        """Says the sign of the text, and 0 where there is none."""

        dimensions: ClassVar = {Modality.TEXT: 1, Modality.IMAGE: 1}

        def outputs(self, vectors: dict, present: dict) -> np.ndarray:
            return np.where(present[Modality.TEXT], np.sign(vectors[Modality.TEXT][:, 0]), 0.0)

    rng = np.random.default_rng(0)
    signs = np.where(np.arange(400) % 2, 1.0, -1.0)
    data = dataset({Modality.TEXT: signs[:, None], Modality.IMAGE: rng.normal(size=(400, 1))})
    found = robustness(Reader(), data, lambda said: float((said == signs).mean()), rng, lambda: None)
    missing = found["missing"]["text"]
    assert missing["scores"] == [1, 0.75, 0.5, 0.25, 0]
    assert missing["area"] == pytest.approx(0.5)
    noise, levels = found["noise"]["text"], found["noise"]["levels"]
    for level, score in zip(levels[1:], noise["scores"][1:], strict=True):  # P(noise does not turn the sign)
        assert score == pytest.approx(norm.cdf(1 / level), abs=0.06)
    steps = [(b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(zip(levels, noise["scores"], strict=True))]
    assert noise["area"] == pytest.approx(sum(steps) / levels[-1])
    assert found["missing"]["image"]["scores"] == [1.0] * 5


def test_retrieval_by_hand() -> None:
    """Three items have both: one is found first, one second, one last; the fourth has only one modality."""
    unit = np.eye(4, dtype=np.float32)
    text = np.stack([unit[0], unit[1], unit[2], unit[3]])
    image = np.stack([unit[0], (unit[1] + 2 * unit[2]) / 5**0.5, (unit[3] + 2 * unit[0]) / 5**0.5, unit[3]])
    present = {Modality.TEXT: np.ones(4, np.bool_), Modality.IMAGE: np.array([True, True, True, False])}
    found = retrieval({Modality.TEXT: text, Modality.IMAGE: image}, present)
    scores = found["text→image"]  # ranks 1, 1, and 3: of text 2, the own image is as far as that of item 0
    assert scores["items"] == 3
    assert scores["recall@1"] == pytest.approx(2 / 3)
    assert scores["median_rank"] == 1
    assert scores["mean_reciprocal_rank"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert scores["chance"] == {
        "recall@1": pytest.approx(1 / 3), "recall@5": 1, "recall@10": 1, "median_rank": 2,
        "mean_reciprocal_rank": pytest.approx((1 + 1 / 2 + 1 / 3) / 3),
    }  # fmt: skip
    assert mean_reciprocal_rank(found) == pytest.approx(
        (scores["mean_reciprocal_rank"] + found["image→text"]["mean_reciprocal_rank"]) / 2
    )
