"""Concatenation: an item's vectors one after the other, zeros where a modality is missing.

The early fusion of Ngiam et al., "Multimodal Deep Learning" (ICML 2011), without a network behind it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.ml.fusion.base import Fusion, Masks, Vectors
from shared.queues import Modality


class ConcatFusion(Fusion):
    """To Σ d_m dimensions. An item without any modality is all zeros."""

    def __init__(self, dimensions: Mapping[Modality, int]):
        super().__init__(dimensions)
        self.dimension = sum(self.dimensions.values())

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, Σ d_m]."""
        return torch.cat(list(self.present(vectors, mask).values()), dim=1)
