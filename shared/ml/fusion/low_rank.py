"""Low-rank multimodal fusion: all products of components across modalities, without their tensor.

Liu et al., "Efficient low-rank multimodal fusion with modality-specific factors" (ACL 2018). With z_m = [v_m, 1], the
outer product of all z_m holds every component and every product of components of different modalities. A weight tensor
of rank r contracts it as h = Σ_i Π_m (w_m,i · z_m) + b, element by element. The paper's weights of the r terms are left
out: the factors can take them up.
"""

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from shared.ml.fusion.base import Fusion, Masks, Vectors
from shared.queues import Modality


class LowRankFusion(Fusion):
    """To `dimension` values. Of a missing modality only the 1 of z_m is left: the products of the others remain.

    An item without any modality gets the constant term.
    """

    def __init__(self, dimensions: Mapping[Modality, int], dimension: int, rank: int):
        super().__init__(dimensions)
        self.dimension = dimension
        self.factors = nn.ParameterDict(
            {m: _factor(rank, d, dimension, len(self.dimensions)) for m, d in self.dimensions.items()}
        )
        self.bias = nn.Parameter(torch.zeros(dimension))

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """[n, dimension]."""
        terms = []
        for m, v in self.present(vectors, mask).items():
            z = torch.cat([v, torch.ones_like(v[:, :1])], dim=1)
            terms.append(torch.einsum("nd,rdh->nrh", z, self.factors[m]))
        return reduce(torch.mul, terms).sum(1) + self.bias


def _factor(rank: int, d: int, dimension: int, modalities: int) -> nn.Parameter:
    """[rank, d + 1, dimension]: at first each modality multiplies by about 1, so that no product vanishes.

    Vectors of d components of variance 1 make h a mean of products of 1 + N(0, 1).
    """
    factor = torch.ones(rank, d + 1, dimension)
    nn.init.normal_(factor[:, :d], std=1 / math.sqrt(d))
    return nn.Parameter(factor * rank ** (-1 / modalities))
