"""A small model on the vectors of items: an embedding for each modality, their fusion, and a head.

With one modality it is that modality alone: embedding, then head. Parameters are drawn, and values dropped, by torch's
global generator: call `torch.manual_seed` before.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.fusion_parameters import validate_parameters
from shared.ml.fusion.base import Masks, Vectors, zero_missing
from shared.ml.fusion.build import make_fusion
from shared.queues import Modality
from shared.schemas import FusionMethod
from shared.strict import Strict

_Size = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_ROWS_IN_CACHE = 512


class MultimodalConfig(Strict):
    """What a `MultimodalModel` is built from: with its `state_dict`, the whole model."""

    dimensions: dict[Modality, _Size] = Field(min_length=1, description="of each modality's vectors")
    outputs: _Size | None = Field(description="logits or values; null: the fused vector itself")
    hidden: int = Field(128, ge=0, description="of each modality's embedding; 0: the standardised vector itself")
    dropout: _Share = Field(0.1, description="in embeddings and head")
    modality_dropout: _Share = Field(0.0, description="of the modalities of an item, while training")
    fusion: FusionMethod = FusionMethod.CONCAT
    parameters: dict[str, Any] = Field(default_factory=dict, description="of the fusion")
    head_hidden: int = Field(0, ge=0, description="of the head's hidden layer; 0: a linear head")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        validate_parameters(self.fusion, self.parameters, self.dimensions, param="parameters")
        if self.fusion is FusionMethod.NONE:
            raise ValueError("a model needs a fusion; with one modality, `concat` leaves it as it is")
        if self.fusion is FusionMethod.LATE and self.head_hidden:
            raise ValueError("`late` has a head in each modality and none after them: head_hidden must be 0")
        if self.outputs is None and self.head_hidden:
            raise ValueError("without outputs there is no head: head_hidden must be 0")
        return self

    def alone(self, modality: Modality) -> Self:
        """The same model of one modality."""
        one = {"dimensions": {modality: self.dimensions[modality]}, "fusion": FusionMethod.CONCAT, "parameters": {}}
        return self.model_copy(update=one)


#: Mean and standard deviation [d_m] of each modality's vectors.
Scales = Mapping[Modality, tuple[Tensor, Tensor]]


def scales_of(vectors: Vectors, mask: Masks) -> Scales:
    """Learned of float [n, d_m] and bool [n] of each modality; of one that no item has, none."""
    return {
        m: fit_standardisation(rows if mask[m].all() else rows[mask[m]]) for m, rows in vectors.items() if mask[m].any()
    }


class MultimodalModel(nn.Module):
    """Vectors of an item, whichever are there, to logits or values. A missing modality never leaks.

    `takes_standardised`: vectors are given as `standardise` makes them, which in training is done once for all steps.
    """

    takes_standardised = False

    def __init__(self, config: MultimodalConfig):
        super().__init__()
        self.config = config
        modalities = [m for m in Modality if m in config.dimensions]
        self.embeddings = nn.ModuleDict(
            {m: _Embedding(config.dimensions[m], config.hidden, config.dropout) for m in modalities}
        )
        embedded = {m: config.hidden or config.dimensions[m] for m in modalities}
        self.fusion = make_fusion(config.fusion, embedded, config.parameters, outputs=config.outputs)
        self.head = _head(self.fusion.dimension, config)

    @classmethod
    def from_config(cls, config: MultimodalConfig | Mapping[str, Any]) -> Self:
        """A new model; `load_state_dict` makes it the one whose state is loaded."""
        return cls(MultimodalConfig.model_validate(config))

    def fit_standardisation(self, vectors: Vectors, mask: Masks) -> None:
        """Learn mean and standard deviation of each component from training data, over the items that have it.

        Float [n, d_m] and bool [n] of each modality. A modality that no item has stays as it is.
        """
        self.set_scales(scales_of({m: vectors[m] for m in self.config.dimensions}, mask))

    def set_scales(self, scales: Scales) -> None:
        """Standardise by these; a modality that is not among them stays as it is."""
        for modality, (mean, std) in scales.items():
            embedding = self.embeddings[modality]
            assert isinstance(embedding, _Embedding)
            embedding.mean.copy_(mean)
            embedding.std.copy_(std)

    def forward(self, vectors: Vectors, mask: Masks) -> Tensor:
        """Float [n, d_m] and bool [n] of each modality to [n, outputs]."""
        mask = {m: mask[m] for m in self.config.dimensions}
        if self.training and self.config.modality_dropout:
            mask = drop_modalities(mask, self.config.modality_dropout)
        output: Tensor = self.head(self.fuse(vectors, mask))
        return output

    def fuse(self, vectors: Vectors, mask: Masks) -> Tensor:
        """What the head sees: [n, fusion.dimension]."""
        output: Tensor = self.fusion(self.embed(vectors, mask), mask)
        return output

    def embed(self, vectors: Vectors, mask: Masks) -> dict[Modality, Tensor]:
        """What the fusion sees: [n, hidden], or [n, d_m] if there is no embedding, of each modality."""
        if not self.takes_standardised:
            vectors = {m: self._standardised(m, vectors[m], mask[m]) for m in self.config.dimensions}
        return {m: self.embeddings[m](vectors[m]) for m in self.config.dimensions}

    def _standardised(self, modality: Modality, rows: Tensor, mask: Tensor) -> Tensor:
        embedding = self.embeddings[modality]
        assert isinstance(embedding, _Embedding)
        return embedding.standardise(zero_missing(rows, mask))


class _Embedding(nn.Module):
    """Of standardised vectors: Linear → GELU → dropout to `hidden` values, if it is not 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, dimension: int, hidden: int, dropout: float):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("std", torch.ones(dimension))
        layers = [nn.Linear(dimension, hidden), nn.GELU(), nn.Dropout(dropout)] if hidden else []
        self.layers = nn.Sequential(*layers)

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.std

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.layers(rows)
        return output


def fit_standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of rows [n, d]; of what varies by no more than rounding, 1 for the latter.

    In float64 and two passes over parts that fit a cache: a quarter of `torch.std_mean`'s time.
    """
    parts = torch.split(rows, _ROWS_IN_CACHE)
    mean = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0) / len(rows)
    squares = torch.stack([(part.double() - mean).square_().sum(0) for part in parts]).sum(0)
    std = (squares / len(rows)).sqrt()
    float32 = torch.finfo(torch.float32)
    # Below the smallest normal number a divisor has hardly a digit left, or is 0 once it is float32.
    rounding = (float32.eps * mean.abs()).clamp(min=float32.tiny)
    return mean, std.where(std > rounding, 1.0)


def _head(dimension: int, config: MultimodalConfig) -> nn.Module:
    if config.fusion is FusionMethod.LATE or config.outputs is None:
        return nn.Identity()
    if not config.head_hidden:
        return nn.Linear(dimension, config.outputs)
    return nn.Sequential(
        nn.Linear(dimension, config.head_hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.head_hidden, config.outputs),
    )


def drop_modalities(mask: Masks, p: float) -> dict[Modality, Tensor]:
    """Masks [n] in which each item lost each modality it had with probability p, but never its last one.

    Modality dropout of Neverova et al., "ModDrop" (PAMI 2016). Where all would go, one of them stays, each as likely.
    """
    modalities = [m for m in Modality if m in mask]
    present = torch.stack([mask[m] for m in modalities], dim=1)
    draws = torch.rand(present.shape, device=present.device).where(present, -1.0)
    kept = draws >= draws.amax(1, keepdim=True).clamp(0, p)  # the largest stays, however small
    return dict(zip(modalities, kept.unbind(1), strict=True))
