"""Pictures and sounds as soft tokens: a frozen encoder's vector becomes some of the vectors a language model reads.

LLaVA's scheme (Liu et al., "Visual instruction tuning", NeurIPS 2023; the MLP is that of LLaVA-1.5): the encoder and
the language model stay, a small network between them is trained.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from shared.ml.multimodal import fit_standardisation
from shared.queues import Modality
from shared.strict import Strict


@dataclass(frozen=True)
class Media:
    """What stands for one marker of a conversation: float32 [d_m] of the modality's encoder, or nothing."""

    modality: Modality
    vector: NDArray[np.float32] | None


class ProjectorConfig(Strict):
    """What a `Projector` is built from."""

    dimension: int = Field(ge=1, description="d_m, of the encoder's vectors")
    tokens: int = Field(ge=1, description="k, soft tokens of a vector")
    embedding: int = Field(ge=1, description="width of the language model's token embeddings")
    hidden: int = Field(ge=1, description="width of the layer between")


class Projector(nn.Module):
    """Vectors [n, d_m] to soft tokens [n, k, embedding] that are as long as the language model's token embeddings.

    Vectors are standardised first, by what `fit` saw. Parameters are drawn by torch's global generator.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ProjectorConfig, norm: float = 1.0):
        """`norm`: the usual length of a token embedding; it is learned from there."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.dimension))
        self.register_buffer("std", torch.ones(config.dimension))
        self.layers = nn.Sequential(
            nn.Linear(config.dimension, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.tokens * config.embedding),
        )
        self.norm = nn.Parameter(torch.tensor(float(norm)))

    def fit(self, vectors: Tensor) -> None:
        """Learn mean and standard deviation of each component from training vectors, float [n, d_m]."""
        mean, std = fit_standardisation(vectors)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, vectors: Tensor) -> Tensor:
        """Float [n, d_m] to [n, k, embedding]."""
        projected: Tensor = self.layers((vectors - self.mean) / self.std)
        tokens = projected.view(len(vectors), self.config.tokens, self.config.embedding)
        return nn.functional.normalize(tokens, dim=-1) * self.norm
