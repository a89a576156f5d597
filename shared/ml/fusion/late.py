"""Late fusion: each modality decides for itself, and the decisions are combined.

Kittler et al., "On combining classifiers" (PAMI 1998). What is averaged are logits or values, so that it serves classes
and numbers alike; for classes that is the paper's product rule, a weighted geometric mean of the probabilities.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.ml.fusion.base import Fusion, Masks, Vectors, zero_missing
from shared.queues import Modality


class LateFusion(Fusion):
    """To `outputs` logits or values, by one linear head for each modality: these are the decision, no head follows.

    They are averaged with weights, over the modalities that an item has. An item without any modality is all zeros.
    """

    log_weights: Tensor

    def __init__(
        self,
        dimensions: Mapping[Modality, int],
        outputs: int,
        weights: Mapping[Modality, float] | None = None,
        *,
        learned: bool = True,
    ):
        """`weights`: above zero, 1 where none is given; only their ratios matter. `learned`: training starts there."""
        super().__init__(dimensions)
        self.dimension = outputs
        self.heads = nn.ModuleDict({m: nn.Linear(d, outputs) for m, d in self.dimensions.items()})
        given = torch.tensor([(weights or {}).get(m, 1.0) for m in self.dimensions]).log()
        if learned:
            self.log_weights = nn.Parameter(given)
        else:
            self.register_buffer("log_weights", given)

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, outputs]."""
        decisions = [zero_missing(self.heads[m](v), mask[m]) for m, v in self.present(vectors, mask).items()]
        # The lowest number instead of -inf, whose softmax would be NaN for an item without any modality.
        lowest = torch.finfo(self.log_weights.dtype).min
        shares = torch.where(self.stacked(mask), self.log_weights, lowest).softmax(1)
        return torch.einsum("nm,nmo->no", shares, torch.stack(decisions, dim=1))
