"""What an encoder is trained to say of items, and how wrong it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, Method
from shared.items import PlannedItem
from shared.ml.splits import answer_of
from shared.ml.trained import Task


@dataclass(frozen=True)
class Supervision:
    """Learned from training items alone: their classes, or the mean and deviation of their targets."""

    method: Method
    task: Task
    classes: list[str]
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, items: Sequence[PlannedItem], request: FineTuneRequest) -> "Supervision":
        """What these training items ask for, all of which have an answer. Raises JobError (`one_class`)."""
        if request.method is Method.REGRESSOR:
            targets = np.array([answer_of(item, request.method) for item in items], np.float64)
            return cls(request.method, Task.REGRESSION, [], float(targets.mean()), float(targets.std()) or 1.0)
        classes = sorted({name for item in items for name in item.label})
        several = request.multi_label
        if several is None:
            several = any(len(set(item.label)) > 1 for item in items)
        if len(classes) < (1 if several else 2):
            message = f"The training items have no labels but {classes}: there is nothing to tell apart."
            raise JobError(message, code="one_class")
        return cls(request.method, Task.MULTI_LABEL if several else Task.SINGLE_LABEL, classes)

    @property
    def outputs(self) -> int:
        """Logits, or one number."""
        return len(self.classes) or 1

    def answer(self, item: PlannedItem) -> Any:
        """An item's row of `answers`; None if it has only labels that no training item has."""
        answer = answer_of(item, self.method)
        if self.task is Task.REGRESSION:
            return None if answer is None else (answer - self.mean) / self.std  # type: ignore[operator]  # a number
        known = [self.classes.index(name) for name in item.label if name in self.classes]
        if not known:
            return None
        return known[0] if self.task is Task.SINGLE_LABEL else np.isin(np.arange(len(self.classes)), known)

    def answers(self, items: Sequence[PlannedItem]) -> Tensor:
        """Of items that have one: int64 [n], float32 [n, classes] of 0 and 1, or float32 [n]."""
        rows = torch.from_numpy(np.array([self.answer(item) for item in items]))
        return rows if self.task is Task.SINGLE_LABEL else rows.float()

    def losses(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Of each item, [n]: cross-entropy; binary cross-entropy, in the mean over classes; or squared error."""
        outputs = outputs.float()
        if self.task is Task.SINGLE_LABEL:
            return F.cross_entropy(outputs, answers, reduction="none")
        if self.task is Task.MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(outputs, answers, reduction="none").mean(1)
        return F.mse_loss(outputs[:, 0], answers, reduction="none")
