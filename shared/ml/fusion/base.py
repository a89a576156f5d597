"""What a fusion is: a torch module that makes one vector of an item's vectors, whichever of them are there.

Parameters are drawn from torch's global generator: call `torch.manual_seed` before building one. Weights are kept as
safetensors of the `state_dict`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.queues import Modality

#: Float [n, d_m] of each modality.
Vectors = Mapping[Modality, Tensor]

#: Bool [n] of each modality. False: this item lacks the modality, whatever its vector holds (NaN and infinity too).
Masks = Mapping[Modality, Tensor]


class Fusion(nn.Module, ABC):
    """Base of all methods. Modalities come in the order of the enum, whatever the order of the mappings.

    Rows do not depend on each other. A missing modality changes neither the result nor a gradient, whatever its vector
    holds. Parameters must have the dtype and the device of the vectors, and so has what comes out.
    """

    #: Of the vectors that `forward` returns.
    dimension: int

    def __init__(self, dimensions: Mapping[Modality, int]):
        """`dimensions`: d_m of each modality that is fused; those that `forward` is given besides are passed over."""
        super().__init__()
        if not dimensions:
            raise ValueError("a fusion needs at least one modality")
        self.dimensions = {m: dimensions[m] for m in Modality if m in dimensions}

    @abstractmethod
    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """Float [n, d_m] and bool [n] of each modality to [n, dimension]."""

    def present(self, vectors: Vectors, mask: Masks) -> dict[Modality, Tensor]:
        """The modalities that are fused, in order, with zeros where an item lacks one."""
        return {m: zero_missing(vectors[m], mask[m]) for m in self.dimensions}

    def stacked(self, mask: Masks) -> Tensor:
        """Bool [n, modalities] in the same order."""
        return torch.stack([mask[m] for m in self.dimensions], dim=1)


def zero_missing(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows [n, d] whose mask [n] is False become zero and pass no gradient; multiplying by 0 would let NaN through."""
    return torch.where(mask.unsqueeze(1), rows, 0.0)


def unit(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean length; zeros stay zero.

    In float64 and relative to the largest component, so that no square overflows or vanishes.
    """
    wide = rows.double()
    largest = wide.detach().abs().amax(1, keepdim=True)  # a constant: the result does not depend on it
    wide = wide / largest.where(largest > 0, 1.0)
    length: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)  # at least 1, or 0
    return (wide / length.clamp(min=1.0)).to(rows.dtype)
