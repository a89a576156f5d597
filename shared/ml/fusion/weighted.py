"""Weighted concatenation: each vector is scaled to length w_m before they are joined.

The dot product of two fused vectors is then Σ w_m² · cosine of modality m: the weights say how much each modality
counts, whatever the scale of its encoder. The weighted combination of Kittler et al., "On combining classifiers" (PAMI
1998), applied to features instead of decisions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.ml.fusion.base import Fusion, Masks, Vectors, unit
from shared.queues import Modality


class WeightedFusion(Fusion):
    """To Σ d_m dimensions. A vector of zeros stays zero, and an item without any modality is all zeros."""

    weights: Tensor

    def __init__(
        self,
        dimensions: Mapping[Modality, int],
        weights: Mapping[Modality, float] | None = None,
        *,
        learned: bool = False,
    ):
        """`weights`: w_m, 1 where none is given. `learned`: they are where training starts."""
        super().__init__(dimensions)
        self.dimension = sum(self.dimensions.values())
        given = torch.tensor([(weights or {}).get(m, 1.0) for m in self.dimensions])
        if learned:
            self.weights = nn.Parameter(given)
        else:
            self.register_buffer("weights", given)

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, Σ d_m]."""
        rows = self.present(vectors, mask).values()
        return torch.cat([unit(v) * weight for v, weight in zip(rows, self.weights, strict=True)], dim=1)
