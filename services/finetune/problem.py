"""What is to be learned: the answers of a dataset's items, and the loss by which models are chosen."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.finetune.data import Mask, Rows
from shared.errors import JobError
from shared.ml.splits import quantile_strata
from shared.ml.trained import Task

#: Single labels: int64 [n], places among the classes. Several: float64 [n, classes] of 0 and 1. Numbers: float64 [n].
Answers = NDArray[Any]

#: A probability of 0 would make the loss infinite, however right the rest is.
_LEAST = 1e-12


@dataclass(frozen=True)
class Problem:
    """The answers of a dataset's items.

    `known`: how many of the classes have training items. These come first, and the model knows no others. `weights`
    [known]: what the classes count in losses.
    """

    task: Task
    answers: Answers
    classes: list[str]
    known: int = 0
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def outputs(self) -> int:
        """Of the model: classes or one value."""
        return self.known if self.classes else 1

    @property
    def strata(self) -> Mask:
        """Bool [n, s]: what every part of the data should have in the same proportions."""
        if self.task is Task.REGRESSION:
            return quantile_strata(self.answers)
        strata: Mask = self.answers > 0 if self.task is Task.MULTI_LABEL else self._one_hot(self.answers)
        return strata

    def counts(self, rows: Rows) -> NDArray[np.int64]:
        """How many of these items each class has."""
        counts: NDArray[np.int64] = self.strata[rows].sum(axis=0)
        return counts

    def learnable(self, rows: Rows) -> Rows:
        """Those of these items whose classes the model knows: with the others it cannot be trained or compared."""
        return rows[self.answers[rows] < self.known] if self.task is Task.SINGLE_LABEL else rows

    def prior(self, train: Rows) -> NDArray[np.float64]:
        """What is said of an item of which nothing is known: shares of the known classes, or the mean."""
        if self.task is Task.REGRESSION:
            return np.array([self.answers[train].mean()])
        return self.counts(train)[: self.known] / len(train)

    def with_known_first(self, train: Rows) -> "Problem":
        """The classes that have training items first. Raises JobError (`one_class`) if these are all the same."""
        if self.task is Task.REGRESSION:
            return self
        counts = self.counts(train)
        if (counts > 0).sum() < (2 if self.task is Task.SINGLE_LABEL else 1):
            only = self.classes[int(counts.argmax())]
            message = f"All training items have the label {only!r}: there is nothing to tell apart. Add other items."
            raise JobError(message, code="one_class")
        order = np.argsort(counts == 0, kind="stable")
        answers = self.answers[:, order] if self.task is Task.MULTI_LABEL else np.argsort(order)[self.answers]
        classes = [self.classes[place] for place in order]
        return replace(self, classes=classes, known=int((counts > 0).sum()), answers=answers)

    def loss(self, outputs: NDArray[np.float64], rows: Rows) -> float:
        """Of predictions of these learnable items: weighted log-loss (several labels: its mean over classes) or MSE."""
        answers = self.answers[rows]
        if self.task is Task.REGRESSION:
            return float(np.mean((answers - outputs) ** 2))
        sure = np.clip(outputs, _LEAST, 1)
        weights = np.ones(self.known) if self.weights is None else self.weights
        if self.task is Task.SINGLE_LABEL:
            said = -np.log(sure[np.arange(len(rows)), answers])
            return float(np.average(said, weights=weights[answers]))
        answers = answers[:, : self.known]
        unsure = np.clip(1 - outputs, _LEAST, 1)
        return float(-(weights * answers * np.log(sure) + (1 - answers) * np.log(unsure)).mean())

    def _one_hot(self, places: NDArray[np.int64]) -> Mask:
        one_hot: Mask = places[:, None] == np.arange(len(self.classes))
        return one_hot
