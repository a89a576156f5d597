"""A learned border: pixels that are added around every picture, in front of an image encoder that stays as it is.

Bahng et al., "Exploring visual prompts for adapting large-scale models" (2022); the padding prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.encoders.base import Media, TrainableEncoder, Vectors
from shared.ml.encoders.pretrained import invalid

#: The file of a model in which its border is, and the option of its catalogue entry that asks for it.
BORDER, OPTION = "border.safetensors", "border"


class Border(nn.Module):
    """Adds `pixels`, float32 [3, height, width], to normalised pictures of that size where `mask` is 1: at the edge."""

    mask: Tensor

    def __init__(self, height: int, width: int, thickness: int):
        """Nothing is added at first."""
        super().__init__()
        self.pixels = nn.Parameter(torch.zeros(3, height, width))
        mask = torch.ones(height, width)
        mask[thickness : height - thickness, thickness : width - thickness] = 0
        self.register_buffer("mask", mask)

    @classmethod
    def load(cls, spec: EncoderSpec, folder: Path | None) -> Self | None:
        """The border that the entry's options ask for, frozen; None if they do not. Raises JobError
        (`encoder_invalid`)."""
        if not spec.options.get(OPTION):
            return None
        try:
            state = load_file((folder or Path()) / BORDER)
            height, width = state["mask"].shape
            border = cls(height, width, thickness=0)
            border.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise invalid(spec, f"its border cannot be read from {BORDER}: {error}") from error
        return border.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Writes it beside the encoder's own files."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / BORDER)

    def forward(self, pictures: Tensor) -> Tensor:
        """Float [n, 3, height, width] to the same. Raises JobError (`unsuitable_encoder`) for another size."""
        if pictures.shape[2:] != self.mask.shape:
            message = f"The border is for pictures of {tuple(self.mask.shape)}, not {tuple(pictures.shape[2:])}."
            raise JobError(message, code="unsuitable_encoder", param="train_encoder")
        return pictures + (self.pixels * self.mask).to(pictures.dtype)


class BorderableEncoder(TrainableEncoder, Protocol):
    """An image encoder that puts its border, if it has one, on what its model sees."""

    border: Border | None
    picture_size: tuple[int, int]


class BorderTrainer:
    """An image encoder of which only the border is trained: see TrainableEncoder."""

    def __init__(self, encoder: BorderableEncoder, share: float):
        """`share` of the shorter side is the border's thickness; one that is there already is trained further."""
        encoder.module.requires_grad_(False)
        height, width = encoder.picture_size
        device = next(encoder.module.parameters()).device
        if encoder.border is None:
            encoder.border = Border(height, width, max(1, round(share * min(height, width)))).to(device)
        self._encoder = encoder
        self.module: nn.Module = encoder.border.requires_grad_(True)
        self.spec, self.dimension, self.fingerprint = encoder.spec, encoder.dimension, encoder.fingerprint
        self.decode_options, self.at_once = encoder.decode_options, encoder.at_once

    def preprocess(self, media: Media) -> Any:
        """As the encoder does it, and so are the others."""
        return self._encoder.preprocess(media)

    def cost(self, prepared: Any) -> int:
        """See `preprocess`."""
        return self._encoder.cost(prepared)

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """See `preprocess`."""
        return self._encoder.encode(batch)

    def vectors(self, batch: Sequence[Any]) -> Tensor:
        """See `preprocess`."""
        return self._encoder.vectors(batch)

    def save(self, folder: Path) -> None:
        """See `preprocess`."""
        self._encoder.save(folder)


def bordered(spec: EncoderSpec) -> EncoderSpec:
    """The entry of an encoder whose border was trained."""
    return spec.model_copy(update={"options": {**spec.options, OPTION: True}})
