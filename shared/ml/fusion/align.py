"""Alignment: every modality projected into one space, in which the vectors of one item are near each other.

The linear projections and unit vectors of CLIP (Radford et al., "Learning transferable visual models from natural
language supervision", ICML 2021), for any number of modalities. They are trained with `info_nce`, or computed without
training by `cca`. What is in the space can be searched across modalities.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.ml.fusion.base import Fusion, Masks, Vectors, unit, zero_missing
from shared.queues import Modality


class AlignFusion(Fusion):
    """To the unit vector in the middle of an item's projections. An item without any modality is all zeros."""

    def __init__(self, dimensions: Mapping[Modality, int], dimension: int):
        """`dimension`: of the shared space."""
        super().__init__(dimensions)
        self.dimension = dimension
        self.projections = nn.ModuleDict({m: nn.Linear(d, dimension) for m, d in self.dimensions.items()})

    def project(self, vectors: Vectors, mask: Masks) -> dict[Modality, Tensor]:
        """Unit vectors [n, dimension] of each modality in the shared space, zeros where it is missing."""
        rows = self.present(vectors, mask)
        return {m: zero_missing(unit(self.projections[m](v)), mask[m]) for m, v in rows.items()}

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, dimension]."""
        return unit(torch.stack(list(self.project(vectors, mask).values())).sum(0))
