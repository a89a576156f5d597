"""What training makes small: the loss of a network on a batch of items."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.finetune.data import Dataset, Rows
from services.finetune.problem import Answers, Problem
from shared.errors import JobError
from shared.ml.fusion.align import AlignFusion
from shared.ml.fusion.info_nce import InfoNCE
from shared.ml.multimodal import MultimodalModel, Scales
from shared.ml.trained import Task
from shared.queues import Modality

Loss = Literal["cross_entropy", "bce", "mse"]


@dataclass(frozen=True)
class Batch:
    """Items as tensors on one device: vectors [n, d_m] and mask [n] by modality, and their answers [n, …]."""

    vectors: dict[Modality, Tensor]
    mask: dict[Modality, Tensor]
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def take(self, index: Tensor | slice) -> "Batch":
        """Some of the items."""

        def taken(rows: Tensor) -> Tensor:
            # Of places this copies whole rows, twice as fast as indexing, which looks at each value.
            return rows[index] if isinstance(index, slice) else rows.index_select(0, index)

        return Batch(
            {m: taken(v) for m, v in self.vectors.items()},
            {m: taken(k) for m, k in self.mask.items()},
            taken(self.answers),
        )

    def standardise(self, scales: Scales) -> None:
        """In place; zeros, which then are the mean, stand where a modality is missing."""
        for modality, scale in scales.items():
            rows = self.vectors[modality]
            mean, std = (tensor.to(rows) for tensor in scale)
            rows[~self.mask[modality]] = mean
            rows.sub_(mean).div_(std)


def make_batch(data: Dataset, rows: Rows, answers: Answers, device: torch.device) -> Batch:
    """These items of a dataset; `answers` are those of all. Numbers become float32, places stay int64."""
    chosen = torch.from_numpy(answers[rows])
    return Batch(
        {m: torch.from_numpy(v[rows]).to(device) for m, v in data.vectors.items()},
        {m: torch.from_numpy(p[rows]).to(device) for m, p in data.present.items()},
        (chosen.float() if chosen.is_floating_point() else chosen).to(device),
    )


class Objective(nn.Module, ABC):
    """A loss, with what it learns itself, if it does."""

    @abstractmethod
    def forward(self, network: MultimodalModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the sum of what they are weighted with: their quotient is the mean loss."""


class Supervised(Objective):
    """How far the network's outputs are from the answers.

    `cross_entropy`: of single labels. `bce`: with logits, of each class by itself, in the mean over classes. `mse`:
    Σ(y−ŷ)²/2N, so that the gradient by ŷ is the mean error. `weights` [classes]: how much an item of a class counts
    (cross-entropy), or how much a class counts where it applies (BCE).
    """

    weights: Tensor | None

    def __init__(self, loss: Loss, weights: Tensor | None = None):
        super().__init__()
        self.loss = loss
        self.register_buffer("weights", weights)

    def forward(self, network: MultimodalModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """See Objective."""
        output = network(batch.vectors, batch.mask).float()
        count = torch.tensor(float(len(batch)), device=output.device)
        if self.loss == "mse":
            return functional.mse_loss(output[:, 0], batch.answers, reduction="sum") / 2, count
        if self.loss == "cross_entropy":
            total = functional.cross_entropy(output, batch.answers, self.weights, reduction="sum")
            return total, count if self.weights is None else self.weights[batch.answers].sum()
        applies = batch.answers
        if applies.ndim == 1:
            applies = functional.one_hot(applies, output.shape[1]).float()
        total = functional.binary_cross_entropy_with_logits(output, applies, pos_weight=self.weights, reduction="sum")
        return total / output.shape[1], count


class Contrastive(Objective):
    """InfoNCE over the pairs of modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.info_nce = InfoNCE()

    def forward(self, network: MultimodalModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """See Objective."""
        projections = projected(network, batch)
        return self.info_nce(projections, batch.mask) * len(batch), torch.tensor(float(len(batch)))


def projected(network: MultimodalModel, batch: Batch) -> dict[Modality, Tensor]:
    """Each modality alone in the common space of the fusion `align`."""
    assert isinstance(network.fusion, AlignFusion)
    return network.fusion.project(network.embed(batch.vectors, batch.mask), batch.mask)


def class_weights(
    choice: Literal["balanced"] | Mapping[str, float] | None, problem: Problem, train: Rows
) -> NDArray[np.float64] | None:
    """What each known class counts; one that is not named counts 1.

    `balanced` makes all classes count the same (single labels: n / (classes · count)), or where a class applies as much
    as where it does not (several labels: (n − count) / count). Raises JobError (`unknown_class`).
    """
    if choice is None:
        return None
    if choice == "balanced":
        counts = problem.counts(train)[: problem.known]
        if problem.task is Task.SINGLE_LABEL:
            return len(train) / (problem.known * counts)
        return np.maximum(len(train) - counts, 1) / counts
    unknown = sorted(choice.keys() - set(problem.classes))
    if unknown:
        message = f"training.class_weights names {unknown[0]!r}, which is no label of an item; drop it or correct it."
        raise JobError(message, code="unknown_class", param="training.class_weights")
    return np.array([choice.get(name, 1.0) for name in problem.classes[: problem.known]])
