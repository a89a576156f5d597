"""The recipe for classes: what the labels of items ask."""

from typing import Any

import numpy as np

from services.finetune.data import Dataset
from services.finetune.problem import Problem
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.ml.trained import Task


def class_problem(data: Dataset, request: FineTuneRequest) -> tuple[Dataset, Problem]:
    """The items that have labels, and these as what is to be learned.

    Raises JobError (`no_labels`, `several_labels`, `unsuitable_loss`).
    """
    labelled = data.take([row for row, labels in enumerate(data.labels) if labels])
    if not len(labelled):
        raise JobError("No item has a label: a classifier needs items with `label`.", code="no_labels", param="items")
    several = request.multi_label
    if several is None:
        several = any(len(set(labels)) > 1 for labels in labelled.labels)
    if request.training.loss not in ("auto", "bce", *(() if several else ("cross_entropy",))):
        what = "several labels" if several else "classes"
        message = f"The loss {request.training.loss!r} is not for {what}; leave out training.loss."
        raise JobError(message, code="unsuitable_loss", param="training.loss")
    classes = sorted({label for labels in labelled.labels for label in labels})
    return labelled, _of_sets(labelled, classes) if several else _of_labels(labelled, classes)


def _of_labels(data: Dataset, classes: list[str]) -> Problem:
    place = {label: i for i, label in enumerate(classes)}
    for id, labels in zip(data.ids, data.labels, strict=True):
        if len(set(labels)) > 1:
            message = f"The item {id!r} has {len(labels)} labels: give each item one, or leave out multi_label."
            raise JobError(message, code="several_labels", param="multi_label")
    return Problem(Task.SINGLE_LABEL, np.array([place[labels[0]] for labels in data.labels], np.int64), classes)


def _of_sets(data: Dataset, classes: list[str]) -> Problem:
    place = {label: i for i, label in enumerate(classes)}
    answers: Any = np.zeros((len(data), len(classes)), np.float64)
    for row, labels in enumerate(data.labels):
        answers[row, [place[label] for label in labels]] = 1
    return Problem(Task.MULTI_LABEL, answers, classes)
