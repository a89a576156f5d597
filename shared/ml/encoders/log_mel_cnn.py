"""A small convolutional network on log-mel spectrograms, trained from scratch by a job on its items' labels.

After Kong et al., "PANNs: Large-scale pretrained audio neural networks" (2020): each mel band is normalised, the last
maps are pooled over time by mean and maximum. In training, stripes of time and frequency are masked: Park et al.,
"SpecAugment" (2019).
"""

from collections.abc import Sequence
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import WEIGHTS, Media, Vectors
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.encoders.log_mel import FRAME_RATE, HOP, N_MELS, SAMPLE_RATE
from shared.ml.encoders.pretrained import invalid, save_weights

#: float32 [frames, mel bands]
Spectrogram = NDArray[np.float32]

#: SpecAugment: how many stripes of each kind, and the widest as a share of all bands or frames.
_STRIPES, _WIDEST = 2, 1 / 8
_DROPOUT = 0.2


class LogMelCnnOptions(BaseModel):
    """The catalogue options: how much sound the network hears at once, and the maps of its blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_seconds: float = Field(default=3.0, ge=0.5, le=30)
    channels: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1, max_length=4)


class LogMelCnn(nn.Module):
    """Residual blocks (He et al. 2016) of 3×3 convolutions, each at half the resolution of the one before."""

    def __init__(self, channels: Sequence[int], dimension: int):
        super().__init__()
        self.bands = nn.BatchNorm1d(N_MELS)
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        pairs = zip([channels[0], *channels], channels, strict=False)
        blocks = [nn.Sequential(_Block(before, after), nn.AvgPool2d(2)) for before, after in pairs]
        self.blocks = nn.Sequential(*blocks)
        self.embedding = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(channels[-1], dimension), nn.ReLU())

    def forward(self, windows: Tensor) -> Tensor:
        """Float32 [n, frames, bands] to [n, dimension]."""
        bands = self.bands(windows.transpose(1, 2))
        if self.training:
            bands = spec_augment(bands)
        maps = self.blocks(self.stem(bands.unsqueeze(1))).mean(2)
        vectors: Tensor = self.embedding(maps.mean(2) + maps.amax(2))
        return vectors


class _Block(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.passage = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.convolutions(maps) + self.passage(maps))


class LogMelCnnEncoder:
    """Sound to the mean of its windows' vectors; always in fp32. Shorter sound is repeated until it fills a window."""

    def __init__(
        self, spec: EncoderSpec, source: Path | None, device: str, _precision: Precision, *, trainable: bool = False
    ):
        try:
            options = LogMelCnnOptions.model_validate(spec.options)
        except ValidationError as error:
            raise invalid(spec, f"its options are wrong: {error}") from error
        if source is None and not trainable:
            message = f"{spec.id} is trained by a job on its items' labels; by itself it has no weights."
            raise JobError(message, code="encoder_unavailable")
        self.spec = spec
        self.dimension = spec.dimension
        self.at_once = 60 * 60 * SAMPLE_RATE  # of which the network hears a window of each item
        self.decode_options: dict[str, Any] = {"sample_rate": SAMPLE_RATE, "extractor": "log_mel"}
        self._window = round(options.window_seconds * FRAME_RATE)
        self._device = choose_device(device)
        network = LogMelCnn(options.channels, spec.dimension)
        if source is not None:
            _load(spec, network, source / WEIGHTS)
        network = network.eval().requires_grad_(trainable)
        network = network.to(self._device, choose_dtype(self._device, "fp32"))
        self.module: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # wrong hint
        preprocessing = options.model_dump() | self.decode_options | {"librosa": version("librosa")}
        weights = "" if source is None else digest_of([source / WEIGHTS])
        self.fingerprint = fingerprint_of(weights, "float32", preprocessing)

    def preprocess(self, media: Media) -> Spectrogram:
        """The spectrogram that decoding made, float32 [frames, bands], repeated if it is shorter than a window."""
        spectrogram = np.asarray(media, np.float32)
        return np.tile(spectrogram, (ceil(self._window / len(spectrogram)), 1))[: max(self._window, len(spectrogram))]

    def cost(self, prepared: Spectrogram) -> int:
        """Samples."""
        return len(prepared) * HOP

    def encode(self, batch: Sequence[Spectrogram]) -> Vectors:
        """Spectrograms to float32 [len(batch), dimension]."""
        with torch.inference_mode():
            array: Vectors = self.vectors(batch).cpu().numpy()
        return array

    def vectors(self, batch: Sequence[Spectrogram]) -> Tensor:
        """See TrainableEncoder. In training, of one window of each sound, anywhere in it."""
        windows = [self._anywhere(item) if self.module.training else self._everywhere(item) for item in batch]
        flat = torch.from_numpy(np.concatenate(windows)).to(self._device)
        of_items = torch.split(self.module(flat).float(), [len(window) for window in windows])
        return torch.stack([of_item.mean(0) for of_item in of_items])

    def save(self, folder: Path) -> None:
        """See TrainableEncoder."""
        save_weights(self.module, folder)

    def _anywhere(self, spectrogram: Spectrogram) -> Spectrogram:
        start = int(torch.randint(len(spectrogram) - self._window + 1, ()))
        return spectrogram[None, start : start + self._window]

    def _everywhere(self, spectrogram: Spectrogram) -> Spectrogram:
        """Windows evenly from start to end, overlapping where they must, float32 [windows, frames, bands]."""
        starts = np.linspace(0, len(spectrogram) - self._window, ceil(len(spectrogram) / self._window)).round()
        return np.stack([spectrogram[int(start) : int(start) + self._window] for start in starts])


def spec_augment(spectrograms: Tensor) -> Tensor:
    """Float32 [n, bands, frames] with stripes across bands and across frames set to 0, the mean of each band."""
    for axis in (1, 2):
        size = spectrograms.shape[axis]
        for _ in range(_STRIPES):
            share, place = torch.rand(2, len(spectrograms), 1)
            width = share * size * _WIDEST
            start = place * (size - width)
            positions = torch.arange(size) + 0.5
            kept = (positions < start) | (positions >= start + width)
            spectrograms = spectrograms * kept.to(spectrograms.device).unsqueeze(3 - axis)
    return spectrograms


def _load(spec: EncoderSpec, network: LogMelCnn, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise invalid(spec, f"{path.name} does not hold this network: {error}") from error
