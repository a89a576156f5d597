"""How `make learn` compares: rounds, what is chosen in each, and the models that take part."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from services.finetune.candidates import candidates
from services.finetune.folds import stratified_folds
from services.finetune.recipes.classifier import class_problem
from shared.fine_tuning import FusionChoice
from shared.ml.repeatable import generator
from shared.ml.splits import Parts
from tests.learn.contenders import BASELINES, ENSEMBLE, PRESET, SINGLE, Verdict, contend
from tests.learn.fusion import BEST_FUSION, BEST_SINGLE, Round, Scores
from tests.learn.results import Result
from tests.unit.finetune_data import blobs, request


def test_folds_are_as_even_as_those_of_scikit_learn() -> None:
    """Every item is tested once a repeat, no part shares an item, and no class is off by more than one item."""
    labels = np.random.default_rng(0).choice(4, p=[0.5, 0.3, 0.15, 0.05], size=230)
    strata = labels[:, None] == np.arange(4)
    folds = list(stratified_folds(strata, 5, 0.15, generator(0, "folds")))
    reference = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
    assert sorted(np.concatenate([parts.test for parts in folds])) == list(range(230))
    for parts, (_, theirs) in zip(folds, reference, strict=True):
        assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == list(range(230))
        assert np.abs(np.bincount(labels[parts.test]) - np.bincount(labels[theirs])).max() <= 1
        share = np.bincount(labels[parts.validation]) / np.bincount(labels[parts.train])
        assert share == pytest.approx(0.15 / 0.85, abs=0.1)
    again = list(stratified_folds(strata, 5, 0.15, generator(0, "folds")))
    assert all((a.test == b.test).all() and (a.train == b.train).all() for a, b in zip(folds, again, strict=True))


def verdict(loss: float, right: list[bool]) -> Verdict:
    return Verdict(loss, np.array(right))


def test_the_best_are_chosen_by_validation_in_each_round() -> None:
    """However a model does on the test items; baselines and what is made of several do not take part."""
    first = {
        "text": verdict(0.5, [False, False]), "image": verdict(0.9, [True, True]),
        "concat": verdict(0.4, [True, False]), "gated": verdict(0.6, [True, True]),
        "preset-good": verdict(0.1, [True, True]), "ensemble": verdict(0.1, [True, True]),
        "logistic-regression": verdict(0.1, [True, True]),
    }  # fmt: skip
    second = {**first, "text": verdict(1.0, [False, False]), "gated": verdict(0.3, [False, True])}
    rows = np.arange(4)
    rounds = [
        Round(0, Parts(rows[2:], rows[2:], rows[:2]), first),
        Round(0, Parts(rows[:2], rows[:2], rows[2:]), second),
    ]
    scores = Scores.of(rounds, 4)
    assert scores.right[BEST_SINGLE].tolist() == [[0, 0, 1, 1]]
    assert scores.right[BEST_FUSION].tolist() == [[1, 0, 0, 1]]
    assert scores.by_round(BEST_SINGLE).tolist() == [0, 1]


def test_a_result_is_a_line_of_json() -> None:
    """With the keys that were promised."""
    line = Result("emoji/text", "accuracy", 1 / 3, 0.3, 0.4, 100).line()
    assert line == '{"name": "emoji/text", "metric": "accuracy", "value": 0.3333, "low": 0.3, "high": 0.4, "n": 100}'


def test_all_methods_take_part_in_what_jobs_make_of_them() -> None:
    """The preset's model is the best of its own networks by validation, and nothing was trained twice for it."""
    data, problem = class_problem(blobs(100, noise=1.5, missing=0.1), request())
    [parts, *_] = stratified_folds(problem.strata, 5, 0.15, generator(0, "folds"))
    verdicts = contend(data, problem, parts, seed=0)
    methods = FusionChoice.model_json_schema()["properties"]["method"]["enum"]
    assert {*SINGLE, *methods, "linear", PRESET, ENSEMBLE, *BASELINES} == set(verdicts)
    own = [verdicts[c.name] for c in candidates(request(preset="good"), len(parts.train), data.vectors)]
    best = min(own, key=lambda verdict: verdict.validation_loss)
    assert verdicts[PRESET].validation_loss == best.validation_loss
    assert (verdicts[PRESET].right == best.right).all()
    assert verdicts[ENSEMBLE].validation_loss <= best.validation_loss
    assert all(len(verdict.right) == len(parts.test) for verdict in verdicts.values())
    assert verdicts["audio"].right.mean() < verdicts["concat"].right.mean()
