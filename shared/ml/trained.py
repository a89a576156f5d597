"""Models that fine_tune jobs made: one or several small networks, whose predictions are averaged, and their files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Self

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.errors import JobError
from shared.ml.multimodal import MultimodalConfig, MultimodalModel
from shared.ml.shapley import shapley_values
from shared.queues import Modality
from shared.strict import Strict

#: float32 [n, d_m] and bool [n] of each modality.
Vectors = Mapping[Modality, NDArray[np.float32]]
Masks = Mapping[Modality, NDArray[np.bool_]]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ROWS_AT_ONCE = 4096

#: From vectors and masks as tensors to one of them.
_Compute = Callable[[Mapping[Modality, Tensor], Mapping[Modality, Tensor]], Tensor]


class Task(StrEnum):
    """What a model answers."""

    SINGLE_LABEL = "single_label"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"
    ALIGN = "align"


class Member(Strict):
    """One network, and how much its prediction counts."""

    name: str
    weight: float = Field(gt=0)
    model: MultimodalConfig


class TrainedConfig(Strict):
    """`config.json`: with the weights, the whole model."""

    format: Literal[1] = 1
    task: Task
    classes: list[str] = Field(default_factory=list, description="in the order of the outputs")
    prior: list[float] = Field(
        default_factory=list,
        description="what is said of an item without any modality: shares of the classes, or the mean, in training",
    )
    one_vs_rest: bool = Field(False, description="trained class by class (BCE): probabilities are σ(x), scaled to 1")
    mean: float = Field(0.0, description="of the targets: a number is said in units of `std` from here")
    std: float = 1.0
    members: list[Member] = Field(min_length=1)


@dataclass(frozen=True)
class Predictions:
    """`probabilities` float64 [n, classes] and `labels` of n items, or for numbers `values` float64 [n].

    Of single labels the most probable is said, of several all that are at least as probable as not.
    """

    probabilities: NDArray[np.float64] | None
    labels: list[list[str]]
    values: NDArray[np.float64] | None


class TrainedModel:
    """Predicts with vectors that came from the encoders it was trained on. A missing modality never leaks."""

    def __init__(self, config: TrainedConfig, networks: Sequence[MultimodalModel]):
        self.config = config
        self._networks = [network.eval() for network in networks]

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device | str = "cpu") -> Self:
        """The model in these files (`save_trained`); others beside them are passed over."""
        config = TrainedConfig.model_validate_json(files[CONFIG])
        tensors = safetensors.torch.load(files[WEIGHTS])
        networks = []
        for place, member in enumerate(config.members):
            prefix = f"{place}."
            network = MultimodalModel(member.model)
            network.load_state_dict(
                {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            )
            networks.append(network.to(device))
        return cls(config, networks)

    @property
    def dimensions(self) -> dict[Modality, int]:
        """d_m of each modality that it looks at."""
        return dict(self.config.members[0].model.dimensions)

    @property
    def dimension(self) -> int:
        """Of the fused vectors."""
        return sum(network.fusion.dimension for network in self._networks)

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        return sum(p.numel() for network in self._networks for p in network.parameters())

    def predict(self, vectors: Vectors, mask: Masks) -> Predictions:
        """What the model says of n items; of one without any modality, what is so on average."""
        outputs = self.outputs(vectors, mask)
        config = self.config
        if config.task is Task.REGRESSION:
            return Predictions(None, [[]] * len(outputs), outputs)
        if config.task is Task.SINGLE_LABEL:
            labels = [[config.classes[place]] for place in outputs.argmax(axis=1)]
        else:
            labels = [[config.classes[place] for place in np.flatnonzero(row >= 0.5)] for row in outputs]
        return Predictions(outputs, labels, None)

    def outputs(self, vectors: Vectors, mask: Masks) -> NDArray[np.float64]:
        """Probabilities [n, classes], or values [n]. Raises JobError (`unsuitable_model`) for the method `align`."""
        if self.config.task is Task.ALIGN:
            raise JobError("This model aligns modalities; it predicts nothing.", code="unsuitable_model")
        weights = np.array([member.weight for member in self.config.members])
        said = [self._said_by(network, vectors, mask) for network in self._networks]
        outputs = np.tensordot(weights / weights.sum(), np.stack(said), axes=1)
        nothing = ~np.logical_or.reduce([mask[m] for m in self.dimensions])
        outputs[nothing] = self.config.prior if outputs.ndim == 2 else self.config.prior[0]
        return np.asarray(outputs, np.float64)

    def fused(self, vectors: Vectors, mask: Masks) -> NDArray[np.float32]:
        """What the fusion makes of n items: float32 [n, dimension]. Of several networks, one after the other.

        Those of several are scaled so that cosines count as much as the networks do.
        """
        rows = [self._batched(network.fuse, vectors, mask) for network in self._networks]
        if len(rows) == 1:
            return rows[0].numpy()
        units = [torch.nn.functional.normalize(r.double(), dim=1) for r in rows]
        scaled = [u * member.weight**0.5 for u, member in zip(units, self.config.members, strict=True)]
        return torch.cat(scaled, dim=1).float().numpy()

    def contributions(self, vectors: Vectors, mask: Masks) -> dict[Modality, NDArray[np.float64]]:
        """How much each modality moved each prediction: exact Shapley values, float64 [n] by modality.

        They add up to the probability of the most probable class (or the value) less that of an item of which nothing
        is known. A missing modality moved nothing.
        """
        modalities = list(self.dimensions)
        best = self.outputs(vectors, mask)
        place = best.argmax(axis=1) if best.ndim == 2 else None

        def value(subset: frozenset[Modality]) -> NDArray[np.float64]:
            kept = {m: mask[m] if m in subset else np.zeros_like(mask[m]) for m in modalities}
            outputs = self.outputs(vectors, kept)
            return outputs if place is None else outputs[np.arange(len(outputs)), place]

        return shapley_values(value, modalities)

    def project(self, vectors: Vectors, mask: Masks) -> dict[Modality, NDArray[np.float32]]:
        """Of the method `align`: each modality alone in the shared space, float32 [n, d]."""
        nothing = {m: np.zeros_like(mask[m]) for m in self.dimensions}
        return {m: self.fused(vectors, {**nothing, m: mask[m]}) for m in self.dimensions}

    def _said_by(self, network: MultimodalModel, vectors: Vectors, mask: Masks) -> NDArray[np.float64]:
        config, raw = self.config, self._batched(network, vectors, mask).double()
        if config.task is Task.REGRESSION:
            return (raw[:, 0] * config.std + config.mean).numpy()
        return activated(raw, config.task, one_vs_rest=config.one_vs_rest).numpy()

    def _batched(self, compute: _Compute, vectors: Vectors, mask: Masks) -> Tensor:
        count = len(next(iter(mask.values())))
        device = next(self._networks[0].parameters()).device
        parts = []
        with torch.inference_mode():
            for first in range(0, max(count, 1), _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                chosen = {m: torch.from_numpy(vectors[m][rows]).to(device) for m in self.dimensions}
                where = {m: torch.from_numpy(mask[m][rows]).to(device) for m in self.dimensions}
                parts.append(compute(chosen, where).cpu())
        return torch.cat(parts)


def activated(logits: Tensor, task: Task, *, one_vs_rest: bool) -> Tensor:
    """Logits [n, classes] to probabilities."""
    if task is Task.SINGLE_LABEL and not one_vs_rest:
        return logits.softmax(1)
    probabilities = logits.sigmoid()
    return probabilities / probabilities.sum(1, keepdim=True) if task is Task.SINGLE_LABEL else probabilities


def save_trained(config: TrainedConfig, states: Sequence[Mapping[str, Tensor]]) -> dict[str, bytes]:
    """The files of a model of these networks: their `state_dict`s in the order of the members."""
    tensors = {f"{place}.{name}": t.contiguous() for place, state in enumerate(states) for name, t in state.items()}
    return {WEIGHTS: safetensors.torch.save(tensors), CONFIG: config.model_dump_json(indent=2).encode()}
