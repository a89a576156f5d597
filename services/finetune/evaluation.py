"""How good predictions are, on items that had no part in training or choosing."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn import metrics

from services.finetune.data import Mask
from services.finetune.problem import Answers
from shared.ml.trained import Task

Outputs = NDArray[np.float64]

_CALIBRATION_BINS = 15


def evaluate(task: Task, answers: Answers, outputs: Outputs, classes: Sequence[str]) -> dict[str, Any]:
    """All scores of predictions, as JSON; what is undefined is null.

    `outputs` are probabilities [n, known] of the first classes (the others had no training items and are never said),
    or values [n]. Averages over classes (`macro`) are over those that occur or were said.
    """
    if task is Task.REGRESSION:
        return _of_values(answers, outputs)
    probabilities = np.pad(outputs, ((0, 0), (0, len(classes) - outputs.shape[1])))
    if task is Task.MULTI_LABEL:
        applies, said = answers > 0, probabilities >= 0.5
        scores: dict[str, float | None] = {
            "subset_accuracy": float((applies == said).all(axis=1).mean()),
            "hamming_loss": float((applies != said).mean()),
        }
        confidence, right = np.maximum(probabilities, 1 - probabilities).ravel(), (applies == said).ravel()
    else:
        best = probabilities.argmax(axis=1)
        applies, said = answers[:, None] == np.arange(len(classes)), best[:, None] == np.arange(len(classes))
        confidence, right = probabilities.max(axis=1), best == answers
        scores = {"accuracy": float(right.mean())}
    by_class = [_of_class(applies[:, c], said[:, c], probabilities[:, c]) for c in range(len(classes))]
    scores |= _averages(applies, said)
    scores |= {
        "auroc": _mean(scores["auroc"] for scores in by_class),
        "average_precision": _mean(scores["average_precision"] for scores in by_class),
        "calibration_error": calibration_error(confidence, right),
    }
    found: dict[str, Any] = {"items": len(answers), **scores, "classes": dict(zip(classes, by_class, strict=True))}
    if task is Task.SINGLE_LABEL:
        found["confusion"] = metrics.confusion_matrix(answers, best, labels=range(len(classes))).tolist()
    return found


def calibration_error(confidence: NDArray[np.float64], right: Mask) -> float:
    """Expected calibration error: how far confidence is from accuracy, in the mean over 15 equal bins of confidence.

    Guo et al., "On calibration of modern neural networks" (ICML 2017).
    """
    place = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gap = np.bincount(place, weights=confidence - right, minlength=_CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _of_class(applies: Mask, said: Mask, probability: NDArray[np.float64]) -> dict[str, Any]:
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        applies, said, average="binary", pos_label=True, zero_division=0
    )
    some = bool(applies.any())
    return {
        "items": int(applies.sum()),
        "precision": float(precision) if said.any() else None,
        "recall": float(recall) if some else None,
        "f1": float(f1) if some or said.any() else None,
        "auroc": float(metrics.roc_auc_score(applies, probability)) if some and not applies.all() else None,
        "average_precision": float(metrics.average_precision_score(applies, probability)) if some else None,
    }


def _averages(applies: Mask, said: Mask) -> dict[str, float]:
    columns = np.flatnonzero((applies | said).any(axis=0))
    scores: dict[str, float] = {}
    for average in ("macro", "micro"):
        values = metrics.precision_recall_fscore_support(
            applies, said, labels=columns, average=average, zero_division=0
        )
        named = zip(("precision", "recall", "f1"), values, strict=False)
        scores |= {f"{name}_{average}": float(value) for name, value in named}
    return scores


def _of_values(answers: Answers, values: Outputs) -> dict[str, Any]:
    varies = len(answers) > 1 and bool(np.ptp(answers) > 0)
    ranked = varies and bool(np.ptp(values) > 0)
    return {
        "items": len(answers),
        "mse": float(metrics.mean_squared_error(answers, values)),
        "mae": float(metrics.mean_absolute_error(answers, values)),
        "r2": float(metrics.r2_score(answers, values)) if varies else None,
        "spearman": float(spearmanr(answers, values).statistic) if ranked else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
