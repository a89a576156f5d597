"""Hugging Face image encoders: ViT, DINOv2 and their kin, convolutional networks, the image towers of dual encoders."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.catalog import EncoderSpec
from shared.errors import ItemError
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.border import Border
from shared.ml.encoders.image_batches import in_batches
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.encoders.pretrained import invalid, load_model, model_files, model_folder, save_model

#: What a dual encoder has besides its image tower.
_OTHER_TOWERS = ("text_", "audio_")

#: Scaled to a fixed shorter side, a thinner image than this would take a thousand times the memory of a square one.
_MAX_ASPECT_RATIO = 200


class ImageOptions(BaseModel):
    """The catalogue options of an image encoder.

    `pooling` makes one vector of the image's parts: `cls`, the first token (Dosovitskiy et al. 2021); `mean`, the mean
    of all tokens or positions; `pooler`, the model's own head; `clip`, the projection into the space shared with text
    (Radford et al. 2021). `normalize` scales it to length 1. `border`: a learned one is put around what the model sees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pooling: Literal["cls", "mean", "pooler", "clip"] = "cls"
    normalize: bool = False
    border: bool = False


class TransformersImageEncoder:
    """Image to one vector through the model's own image processor and the model (see ImageOptions)."""

    def __init__(
        self, spec: EncoderSpec, source: Path | None, device: str, precision: Precision, *, trainable: bool = False
    ):
        try:
            self._options = ImageOptions.model_validate(spec.options)
        except ValidationError as error:
            raise invalid(spec, f"its options are wrong: {error}") from error
        folder = model_folder(spec, source)
        self.spec = spec
        self.decode_options: dict[str, Any] = {}
        self._device = choose_device(device)
        self._dtype = choose_dtype(self._device, precision)
        self._folder = folder
        self.at_once = 8 * 224 * 224
        self.module = self._load_model(folder, trainable=trainable)
        self._processor = load_processor(spec, folder)
        self.border = Border.load(spec, folder)
        if self.border is not None:
            self.border.to(self._device)
        self.dimension = self._probe()
        weights = digest_of(model_files(folder))
        # Without what is usual since later: fingerprints of before stay.
        self.fingerprint = fingerprint_of(weights, str(self._dtype), _before_borders(self._options))

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of what the model sees."""
        height, width = self.preprocess(np.zeros((64, 64, 3), np.uint8)).shape[1:]
        return height, width

    def preprocess(self, media: Media) -> torch.Tensor:
        """RGB, uint8 [height, width, 3], to the model's pixel values, float32 [3, height, width].

        Raises ItemError (`media_too_large`) for an image so thin that scaling it would take gigabytes.
        """
        image = check_shape(np.require(media, np.uint8, "W"))
        inputs = self._processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels: torch.Tensor = inputs["pixel_values"][0]
        return pixels

    def cost(self, prepared: torch.Tensor) -> int:
        """Pixels."""
        return prepared.shape[-2] * prepared.shape[-1]

    def encode(self, batch: Sequence[torch.Tensor]) -> Vectors:
        """Pixel values to float32 [len(batch), dimension]. Images of one size go through the model together."""
        with torch.inference_mode():
            array: Vectors = self.vectors(batch).cpu().numpy()
        return array

    def vectors(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """See TrainableEncoder."""
        by_size: dict[torch.Size, list[int]] = defaultdict(list)
        for index, pixels in enumerate(batch):
            by_size[pixels.shape].append(index)
        rows: dict[int, torch.Tensor] = {}
        for indexes in by_size.values():
            for part in in_batches(indexes, self.cost(batch[indexes[0]]), self._device):
                rows.update(zip(part, self._forward(torch.stack([batch[i] for i in part])), strict=True))
        return torch.stack([rows[i] for i in range(len(batch))])

    def save(self, folder: Path) -> None:
        """See TrainableEncoder."""
        save_model(self.module, self._folder, folder)
        if self.border is not None:
            self.border.save(folder)

    def _load_model(self, folder: Path, *, trainable: bool) -> Any:
        unused = {"pooler": (), "clip": _OTHER_TOWERS}.get(self._options.pooling, ("pooler.",))
        is_tower = self._options.pooling == "clip"
        model = load_model(
            self.spec, folder, self._device, self._dtype, unused=unused, without=_OTHER_TOWERS if is_tower else (),
            trainable=trainable,
        )  # fmt: skip
        if is_tower and not hasattr(model, "get_image_features"):
            raise invalid(self.spec, f"{type(model).__name__} is no dual encoder, and pooling is clip")
        return model.to(memory_format=torch.channels_last)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self._device, self._dtype, memory_format=torch.channels_last)
        if self.border is not None:
            pixels = self.border(pixels)
        if self._options.pooling == "clip":
            features = self.module.get_image_features(pixel_values=pixels)
            vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
        else:
            vectors = self._pool(self.module(pixel_values=pixels))
        vectors = vectors.float()
        if self._options.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors

    def _pool(self, output: Any) -> torch.Tensor:
        if self._options.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output
            return pooled.flatten(1)
        hidden: torch.Tensor = output.last_hidden_state
        if self._options.pooling == "mean":
            # Tokens [n, tokens, d] or, from a convolutional network, a map [n, d, height, width].
            return hidden.float().mean(1) if hidden.ndim == 3 else hidden.float().mean((2, 3))
        if hidden.ndim != 3:
            raise TypeError(f"{type(self.module).__name__} has no tokens to take the first of; pooling can be mean")
        return hidden[:, 0]

    def _probe(self) -> int:
        """The dimension of the vectors, from one black image: what cannot run fails here."""
        try:
            return int(self.encode([self.preprocess(np.zeros((64, 64, 3), np.uint8))]).shape[1])
        except (IndexError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise invalid(self.spec, f"the model cannot encode an image: {error}") from error


def _before_borders(options: ImageOptions) -> dict[str, Any]:
    return options.model_dump(exclude=None if options.border else {"border"})


def check_shape(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, uint8 [height, width, 3], unless scaling it takes gigabytes: ItemError (`media_too_large`)."""
    height, width, _ = image.shape
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        message = f"An image of {width}x{height} is too long for its width."
        raise ItemError(message, code="media_too_large")
    return image


def load_processor(spec: EncoderSpec, folder: Path) -> Any:
    """transformers' AutoImageProcessor from `folder`. Raises JobError (`encoder_invalid`)."""
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor  # its functions have no types
    try:
        return processor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise invalid(spec, f"transformers cannot read the image processor of {folder}: {error}") from error
