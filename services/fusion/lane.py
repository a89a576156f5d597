"""Predictions and fused vectors that somebody waits for: what the fusion pool does with interactive requests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.fusion.models import TrainedModels
from shared.errors import JobError
from shared.lanes.messages import Fused, FuseRows, LaneRequest, Predicted, PredictRows, Rows
from shared.ml.trained import TrainedModel
from shared.queues import Modality, Stage
from shared.worker.context import Prepared
from shared.worker.control import Control

#: Rows of one batch.
_ROWS = 4096


@dataclass(frozen=True)
class _Asked:
    """The items of one request: vectors [n, d_m] and masks [n] of each modality that the model looks at, and what is
    asked of it: to fuse them, or to predict, with contributions or without."""

    model: TrainedModel
    vectors: dict[Modality, NDArray[np.float32]]
    mask: dict[Modality, NDArray[np.bool_]]
    fuse: bool
    contributions: bool

    @property
    def count(self) -> int:
        """n."""
        return len(next(iter(self.mask.values())))


class ModelLane:
    """Lane handler of the predict stage (see shared.worker.context.LaneHandler)."""

    stage = Stage.PREDICT

    def __init__(self, models: TrainedModels):
        self._models = models

    def models(self) -> list[str]:
        """The trained models in memory."""
        return self._models.ids()

    def load(self, request: LaneRequest, control: Control) -> None:
        """Brings the model into memory. Raises JobError (`model_not_found`)."""
        self._models.get(request.model, request.tenant, control)

    def prepare(self, request: LaneRequest, control: Control) -> Prepared:
        """Unpacks the vectors; a modality that was not sent is missing. Raises JobError if they do not fit."""
        payload = request.payload
        assert isinstance(payload, PredictRows | FuseRows)
        model = self._models.get(request.model, request.tenant, control)
        count = len(next(iter(payload.mask.values())))
        contributions = isinstance(payload, PredictRows) and payload.contributions
        asked = _Asked(model, {}, {}, isinstance(payload, FuseRows), contributions)
        for modality, dimension in model.dimensions.items():
            if modality not in payload.vectors:
                asked.vectors[modality] = np.zeros((count, dimension), np.float32)
                asked.mask[modality] = np.zeros(count, np.bool_)
                continue
            asked.vectors[modality] = payload.vectors[modality].array()
            asked.mask[modality] = np.array(payload.mask[modality], np.bool_)
            shape = asked.vectors[modality].shape
            if shape != (count, dimension):
                message = f"The model takes {modality} vectors of {dimension} numbers, and was given {shape[1]}."
                raise JobError(message, code="unsuitable_features")
        size = sum(rows.nbytes for rows in asked.vectors.values())
        return Prepared(asked, count / _ROWS, size)

    def run(self, batch: Sequence[_Asked]) -> list[Predicted | Fused]:
        """Predicts for the items of all the requests together; what is to be fused is a moment's work for each."""
        to_predict = [asked for asked in batch if not asked.fuse]
        predicted = iter(_predict(to_predict) if to_predict else [])
        return [_fuse(asked) if asked.fuse else next(predicted) for asked in batch]


def _fuse(asked: _Asked) -> Fused:
    return Fused(vectors=Rows.of(asked.model.fused(asked.vectors, asked.mask)))


def _predict(batch: Sequence[_Asked]) -> list[Predicted]:
    model = batch[0].model
    vectors = {m: np.concatenate([asked.vectors[m] for asked in batch]) for m in model.dimensions}
    mask = {m: np.concatenate([asked.mask[m] for asked in batch]) for m in model.dimensions}
    said = model.predict(vectors, mask)
    moved = model.contributions(vectors, mask) if any(asked.contributions for asked in batch) else {}
    answers, first = [], 0
    for asked in batch:
        rows = slice(first, first + asked.count)
        answers.append(
            Predicted(
                labels=said.labels[rows],
                probabilities=None if said.probabilities is None else said.probabilities[rows].tolist(),
                values=None if said.values is None else said.values[rows].tolist(),
                contributions={m: v[rows].tolist() for m, v in moved.items()} if asked.contributions else None,
            )
        )
        first += asked.count
    return answers
