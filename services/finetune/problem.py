"""What is to be learned: the answers of a dataset, and how they are scored."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.finetune.data import Dataset, Mask, Rows
from services.finetune.splits import quantile_strata
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.ml.trained import Task

Answers = NDArray[np.int64] | NDArray[np.float64]

#: Fewer items than this with an answer, and nothing can be learned or judged.
FEWEST_ITEMS = 10


@dataclass(frozen=True)
class Problem:
    """The answers of a dataset's items.

    `answers`: for single labels int64 [n], a place in `classes`; for several float64 [n, classes] of 0 and 1; numbers
    float64 [n]. `known`: how many of the classes have training items; these come first, and the model knows no others.
    """

    task: Task
    classes: list[str]
    known: int
    answers: Answers

    @property
    def strata(self) -> Mask:
        """Bool [n, s]: what every part of the data should have in the same proportions."""
        if self.task is Task.REGRESSION:
            return quantile_strata(self.answers)
        return self.answers[:, None] == np.arange(len(self.classes)) if self.answers.ndim == 1 else self.answers > 0

    def counts(self, rows: Rows) -> NDArray[np.intp]:
        """How many of these items each class has."""
        return self.strata[rows].sum(axis=0)

    def with_known_first(self, train: Rows) -> "Problem":
        """The classes that have training items first. Raises JobError (`one_class`) if they are fewer than two."""
        if self.task is Task.REGRESSION:
            return self
        has = self.counts(train) > 0
        if has.sum() < (2 if self.task is Task.SINGLE_LABEL else 1):
            message = f"All training items have the label {self.classes[int(has.argmax())]!r}: there is nothing to tell apart."
            raise JobError(message, code="one_class")
        order = np.argsort(~has, kind="stable")
        answers = np.argsort(order)[self.answers] if self.answers.ndim == 1 else self.answers[:, order]
        return replace(self, classes=[self.classes[i] for i in order], known=int(has.sum()), answers=answers)
