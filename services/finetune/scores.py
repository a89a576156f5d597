"""The one score by which a task is told, made of sums over items: quick to compute on any of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.finetune.evaluation import Outputs
from services.finetune.problem import Answers
from shared.ml.trained import Task

#: More is better in all of them.
MAIN_SCORE = {Task.SINGLE_LABEL: "accuracy", Task.MULTI_LABEL: "f1_micro", Task.REGRESSION: "r2"}

_DRAWS, _LEVEL = 1000, 0.95

#: Float64 [n, k]: what each item brings to a score.
Parts = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A score, and where it lies in 95 % of all draws of as many items (with replacement: the bootstrap of Efron)."""

    score: float
    low: float
    high: float


def main_score(task: Task, answers: Answers, outputs: Outputs) -> float:
    """Accuracy, micro-averaged F1, or R² (NaN if the answers do not vary)."""
    return _score(task, _parts(task, answers, outputs).sum(axis=0))


def main_score_interval(task: Task, answers: Answers, outputs: Outputs, rng: np.random.Generator) -> Interval:
    """The main score with its percentile bootstrap interval."""
    parts = _parts(task, answers, outputs)
    count = len(parts)
    even = np.full(count, 1 / count)
    drawn = [_score(task, rng.multinomial(count, even) @ parts) for _ in range(_DRAWS)]
    low, high = np.nanquantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(_score(task, parts.sum(axis=0)), float(low), float(high))


def _parts(task: Task, answers: Answers, outputs: Outputs) -> Parts:
    if task is Task.SINGLE_LABEL:
        return np.stack([outputs.argmax(axis=1) == answers, np.ones(len(answers))], axis=1)
    if task is Task.MULTI_LABEL:
        applies = answers[:, : outputs.shape[1]] > 0
        said = outputs >= 0.5
        both = (applies & said).sum(axis=1)
        return np.stack([2 * both, answers.sum(axis=1) + said.sum(axis=1)], axis=1).astype(np.float64)
    away = answers - answers.mean()  # small numbers: their squares do not cancel
    return np.stack([(answers - outputs) ** 2, away**2, away, np.ones(len(answers))], axis=1)


def _score(task: Task, sums: NDArray[np.float64]) -> float:
    if task is Task.REGRESSION:
        errors, squares, total, count = sums
        variation = squares - total**2 / count
        return float(1 - errors / variation) if variation > 0 else float("nan")
    return float(sums[0] / sums[1]) if sums[1] else 0.0
