"""The gated multimodal unit: learned gates decide, item by item, how much of each modality passes.

Arevalo et al., "Gated multimodal units for information fusion" (ICLR 2017 workshop), in its form for any number of
modalities: h_m = tanh(W_m v_m), z_m = σ(Z_m [v_1, …, v_k]), h = Σ z_m · h_m, element by element. The paper's bimodal
unit ties the two gates to z and 1 - z; here each modality has its own, so that one can be open with the others missing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.ml.fusion.base import Fusion, Masks, Vectors, zero_missing
from shared.queues import Modality


class GatedFusion(Fusion):
    """To `dimension` values. Gates see zeros for a missing modality; an item without any modality is all zeros."""

    def __init__(self, dimensions: Mapping[Modality, int], dimension: int):
        super().__init__(dimensions)
        self.dimension = dimension
        together = sum(self.dimensions.values())
        self.features = nn.ModuleDict({m: nn.Linear(d, dimension) for m, d in self.dimensions.items()})
        self.gates = nn.ModuleDict({m: nn.Linear(together, dimension) for m in self.dimensions})

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, dimension]."""
        rows = self.present(vectors, mask)
        together = torch.cat(list(rows.values()), dim=1)
        terms = [
            zero_missing(torch.sigmoid(self.gates[m](together)) * torch.tanh(self.features[m](v)), mask[m])
            for m, v in rows.items()
        ]
        return torch.stack(terms).sum(0)
