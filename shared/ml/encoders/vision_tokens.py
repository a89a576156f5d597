"""The vision tower and connector of a vision-language model as an encoder: a picture as its language part would get it.

LLaVA (Liu et al., "Visual instruction tuning", NeurIPS 2023), Idefics3 and SmolVLM, Gemma 3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.image_batches import in_batches
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.encoders.pretrained import invalid, load_model, model_files, model_folder
from shared.ml.encoders.transformers_image import check_shape, load_processor

#: What a vision-language model of transformers has besides its vision tower and connector.
_TEXT_PARTS = ("text_model", "language_model")

#: By these an image processor cuts a picture into as many tiles as its size asks for.
_TILES = ("do_image_splitting", "do_pan_and_scan", "crop_to_patches")


def in_one_piece(processor: Any) -> Any:
    """transformers' image processor, told to leave pictures whole: then each has the same number of tokens."""
    for name in _TILES:
        if getattr(processor, name, False):
            setattr(processor, name, False)
    return processor


class VisionTokensEncoder:
    """Image to the k image features, each as wide as the model's token embeddings, in one vector of k·width numbers."""

    def __init__(self, spec: EncoderSpec, source: Path | None, device: str, precision: Precision):
        if spec.options:
            raise invalid(spec, f"its loader has no options, and it has {', '.join(spec.options)}")
        folder = model_folder(spec, source)
        self.spec = spec
        self.decode_options: dict[str, Any] = {}
        self._device = choose_device(device)
        self._dtype = choose_dtype(self._device, precision)
        self._model = load_model(spec, folder, self._device, self._dtype, without=_TEXT_PARTS)
        if not hasattr(self._model, "get_image_features"):
            raise invalid(spec, f"{type(self._model).__name__} has no image features")
        self._processor = in_one_piece(load_processor(spec, folder))
        self.dimension = self._probe()
        self.fingerprint = fingerprint_of(digest_of(model_files(folder)), str(self._dtype), {"tokens": "whole"})

    def preprocess(self, media: Media) -> dict[str, torch.Tensor]:
        """RGB, uint8 [height, width, 3], to what the model takes, by name; `pixel_values` float32 [..., 3, h, w].

        Raises ItemError (`media_too_large`) for an image so thin that scaling it would take gigabytes.
        """
        image = check_shape(np.require(media, np.uint8, "W"))
        inputs = self._processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        return {name: inputs[name][0] for name in ("pixel_values", "pixel_attention_mask") if name in inputs}

    def cost(self, prepared: dict[str, torch.Tensor]) -> int:
        """Pixels."""
        pixels = prepared["pixel_values"]
        return pixels.shape[-2] * pixels.shape[-1]

    def encode(self, batch: Sequence[dict[str, torch.Tensor]]) -> Vectors:
        """Prepared images to float32 [len(batch), dimension]."""
        with torch.inference_mode():
            parts = [self._forward(part) for part in in_batches(batch, self.cost(batch[0]), self._device)]
            array: Vectors = torch.cat(parts).cpu().numpy()
        return array

    def _forward(self, batch: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        inputs = {name: torch.stack([one[name] for one in batch]).to(self._device) for name in batch[0]}
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        features = self._model.get_image_features(**inputs, return_dict=True).pooler_output
        return torch.stack([one.float().flatten() for one in features])

    def _probe(self) -> int:
        """The dimension of the vectors. Raises JobError (`encoder_invalid`) if it depends on the picture."""
        shapes = ((64, 64), (64, 256), (512, 128))
        try:
            blank = [self.preprocess(np.full((height, width, 3), 200, np.uint8)) for height, width in shapes]
            found = {int(self.encode([one]).shape[1]) for one in blank}
        except (IndexError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise invalid(self.spec, f"the model cannot encode an image: {error}") from error
        if len(found) > 1:
            raise _varies(self.spec)
        return found.pop()


def _varies(spec: EncoderSpec) -> JobError:
    return invalid(
        spec,
        "the number of its image tokens depends on the picture, and vectors have one length; choose a model that "
        "sees every picture at one size, such as SmolVLM, LLaVA 1.5 or Gemma 3",
    )
