"""The recipe for numbers: what the targets of items ask."""

import numpy as np

from services.finetune.data import Dataset
from services.finetune.problem import Problem
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.ml.trained import Task


def value_problem(data: Dataset, request: FineTuneRequest) -> tuple[Dataset, Problem]:
    """The items that have a number as target, and these as what is to be learned.

    Raises JobError (`no_targets`, `text_target`, `constant_target`, `unsuitable_loss`, `unsuitable_option`).
    """
    if data.text_targets:
        first = min(data.text_targets)
        message = f"The target of {first!r} is text: a regressor needs numbers, without quotes."
        raise JobError(message, code="text_target", param="items")
    numbered = data.take(np.flatnonzero(np.isfinite(data.targets)))
    if not len(numbered):
        raise JobError("No item has a target: a regressor needs items with `target`.", code="no_targets", param="items")
    if np.ptp(numbered.targets) == 0:
        message = f"All targets are {numbered.targets[0]:g}: there is nothing to learn."
        raise JobError(message, code="constant_target", param="items")
    if request.training.loss not in ("auto", "mse"):
        message = f"The loss {request.training.loss!r} is not for numbers; leave out training.loss."
        raise JobError(message, code="unsuitable_loss", param="training.loss")
    for name, given in (
        ("training.class_weights", request.training.class_weights), ("multi_label", request.multi_label)
    ):  # fmt: skip
        if given:
            raise JobError(f"A regressor has no classes; leave out {name}.", code="unsuitable_option", param=name)
    return numbered, Problem(Task.REGRESSION, numbered.targets, [])
