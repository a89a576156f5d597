"""What an encoder is. One class per loader implements it; `shared.ml.encoders.loading.load_encoder` picks the class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.queues import Modality

if TYPE_CHECKING:
    from torch import Tensor, nn

#: One item of a modality after decoding: a string; an RGB image, uint8 [height, width, 3]; or mono PCM in [-1, 1],
#: float32 [samples], at the sample rate asked for in `decode_options`.
Media = str | NDArray[Any]

#: float32 [n, dimension]
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Maps one modality to vectors.

    `decode_options` is JSON that the modality's decode process obeys (sizes, sample rate); what it returns goes
    through `preprocess` (thread-safe, one item, ahead of the model) and then, batched by `cost`, through `encode` (one
    model thread).
    `fingerprint` is a hex digest over weights, dtype and preprocessing: equal fingerprints promise equal vectors.
    """

    spec: EncoderSpec
    dimension: int
    fingerprint: str
    decode_options: dict[str, Any]

    def preprocess(self, media: Media) -> Any:
        """One decoded item to the model's input. Raises ItemError if this item cannot be encoded."""
        ...

    def cost(self, prepared: Any) -> int:
        """What this item costs the model: tokens, pixels or samples. Batches are sorted and cut by it."""
        ...

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """Prepared items to float32 [len(batch), dimension], in order.

        Raises MemoryError or torch's OutOfMemoryError."""
        ...


def tokens_of(encoder: Encoder, prepared: Any) -> int:
    """How many tokens a prepared text has, special ones included; a picture or a sound has none."""
    return encoder.cost(prepared) if encoder.spec.modality is Modality.TEXT else 0


class TrainableEncoder(Encoder, Protocol):
    """An encoder with weights in fp32 that can be changed: what `load_trainable` builds.

    `module` holds the weights, in evaluation mode. Items that cost `at_once` together take about a gigabyte of memory
    while they are trained on.
    """

    module: "nn.Module"
    at_once: int

    def vectors(self, batch: Sequence[Any]) -> "Tensor":
        """As `encode`, but float32 [len(batch), dimension] on the encoder's device, with gradients."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the files from which `load_encoder` builds this encoder, the weights in `WEIGHTS`."""
        ...


#: The file in which a trained encoder's weights are.
WEIGHTS = "model.safetensors"
