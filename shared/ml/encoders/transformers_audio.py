"""Hugging Face audio encoders: wav2vec 2.0 and its kin, Whisper's encoder, AST, the audio tower of CLAP."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.catalog import EncoderSpec
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.batching import plan_batches
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.encoders.pretrained import invalid, load_model, model_files, model_folder, save_model

#: What a dual encoder has besides its audio tower.
_OTHER_TOWERS = ("text_", "vision_")

#: Models in which an attention mask makes padding have no effect, provided that they normalise each frame by itself.
_MASKABLE = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat"})

#: float32 [samples]; of the model's outputs, float32 [n, dimension]
Samples = NDArray[np.float32]

#: Seconds of sound that go through the model together: some hundred megabytes of activations.
_SECONDS_AT_ONCE = {"cpu": 60, "cuda": 600}

_DEFAULT_WINDOW_SECONDS = 30.0


class AudioOptions(BaseModel):
    """The catalogue options of an audio encoder.

    `pooling` makes one vector of the frames': `cls`, the first; `mean`, the mean of those with sound; `pooler`, the
    model's own head; `clip`, the projection into the space shared with text (CLAP, Wu et al. 2023). Sound longer than
    `window_seconds` (else what the model's feature extractor takes, else 30 s) is cut into equal windows, whose vectors
    are averaged. `normalize` scales the vector to length 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pooling: Literal["cls", "mean", "pooler", "clip"] = "mean"
    window_seconds: float | None = Field(default=None, ge=0.1, le=600)
    normalize: bool = False


@dataclass(frozen=True)
class Window:
    """A stretch of sound as the model takes it: its inputs by name, and how many samples it was."""

    inputs: dict[str, torch.Tensor]
    samples: int

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in self.inputs.values())


class TransformersAudioEncoder:
    """Sound to one vector through the model's own feature extractor and the model (see AudioOptions)."""

    def __init__(
        self, spec: EncoderSpec, source: Path | None, device: str, precision: Precision, *, trainable: bool = False
    ):
        try:
            self._options = AudioOptions.model_validate(spec.options)
        except ValidationError as error:
            raise invalid(spec, f"its options are wrong: {error}") from error
        folder = model_folder(spec, source)
        self.spec = spec
        self._device = choose_device(device)
        self._dtype = choose_dtype(self._device, precision)
        self._extractor = _load_extractor(spec, folder)
        self._rate = int(self._extractor.sampling_rate)
        self.decode_options: dict[str, Any] = {"sample_rate": self._rate}
        self._shortest, self._fixed = _lengths(self._extractor)
        longest = self._fixed or int(_DEFAULT_WINDOW_SECONDS * self._rate)
        self._window = int((self._options.window_seconds or 0) * self._rate) or longest
        if self._fixed and self._window > self._fixed:
            raise invalid(spec, f"the model takes windows of up to {self._fixed / self._rate:g} s")
        self._folder = folder
        self.at_once = 30 * self._rate
        self._whole = self._load_model(folder, trainable=trainable)
        self.module = self._whole.get_encoder() if self._whole.config.is_encoder_decoder else self._whole
        self._maskable = _maskable(self.module.config)
        self.dimension = self._probe()
        preprocessing = self._options.model_dump() | {"window": self._window}
        self.fingerprint = fingerprint_of(digest_of(model_files(folder)), str(self._dtype), preprocessing)

    def preprocess(self, media: Media) -> list[Window]:
        """Mono PCM, float32 [samples], to the model's inputs for each window."""
        samples = np.asarray(media, np.float32)
        windows = np.array_split(samples, ceil(len(samples) / self._window))
        return [self._extract(window) for window in windows]

    def cost(self, prepared: list[Window]) -> int:
        """Samples, counting the silence that the feature extractor adds."""
        return sum(self._window_cost(window) for window in prepared)

    def encode(self, batch: Sequence[list[Window]]) -> Vectors:
        """Windows of items to float32 [len(batch), dimension]."""
        with torch.inference_mode():
            array: Vectors = self.vectors(batch).cpu().numpy()
        return array

    def vectors(self, batch: Sequence[list[Window]]) -> torch.Tensor:
        """See TrainableEncoder."""
        windows = [window for item in batch for window in item]
        rows: dict[int, torch.Tensor] = {}
        for indexes in self._plan(windows):
            rows.update(zip(indexes, self._forward([windows[i] for i in indexes]), strict=True))
        of_items = torch.split(torch.stack([rows[i] for i in range(len(windows))]), [len(item) for item in batch])
        vectors = torch.stack([of_item.mean(0) for of_item in of_items])
        return torch.nn.functional.normalize(vectors, dim=1) if self._options.normalize else vectors

    def save(self, folder: Path) -> None:
        """See TrainableEncoder."""
        save_model(self._whole, self._folder, folder)

    def _load_model(self, folder: Path, *, trainable: bool) -> Any:
        """The model; of one with a decoder, all of it."""
        unused = {"pooler": (), "clip": _OTHER_TOWERS}.get(self._options.pooling, ("pooler.", "decoder."))
        unused = ("masked_spec_embed", *unused)
        model = load_model(self.spec, folder, self._device, self._dtype, unused=unused, trainable=trainable)
        if self._options.pooling == "clip":
            if not hasattr(model, "get_audio_features"):
                raise invalid(self.spec, f"{type(model).__name__} is no dual encoder, and pooling is clip")
            for name in [name for name, _ in model.named_children() if name.startswith(_OTHER_TOWERS)]:
                delattr(model, name)
        if trainable:
            model.config.apply_spec_augment = False  # it masks stretches that may be longer than the sound
            if hasattr(model, "freeze_feature_encoder"):
                model.freeze_feature_encoder()  # as wav2vec 2.0 and its kin are always tuned
        return model

    def _extract(self, samples: Samples) -> Window:
        samples = np.pad(samples, (0, max(self._shortest - len(samples), 0)))
        inputs = self._extractor(samples, sampling_rate=self._rate, return_tensors="pt")
        tensors = {name: tensor[0] for name, tensor in inputs.items()}
        waveform = tensors.get("input_values")
        if waveform is not None and waveform.ndim == 1:
            tensors = {"input_values": waveform}
        return Window(tensors, len(samples))

    def _window_cost(self, window: Window) -> int:
        return self._fixed or window.samples

    def _plan(self, windows: Sequence[Window]) -> list[list[int]]:
        """Which windows go through the model together: all of like length if padding is harmless, else of one shape."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, window in enumerate(windows):
            groups[None if self._maskable else _shapes(window)].append(index)
        limit = _SECONDS_AT_ONCE[self._device.type] * self._rate
        plan = []
        for indexes in groups.values():
            costs = [self._window_cost(windows[i]) for i in indexes]
            batches = plan_batches(costs, max_cost=limit, max_items=len(indexes))
            plan += [[indexes[i] for i in batch] for batch in batches]
        return plan

    def _forward(self, windows: Sequence[Window]) -> torch.Tensor:
        """Windows to float32 [len(windows), dimension]."""
        inputs = {name: self._stack([window.inputs[name] for window in windows]) for name in windows[0].inputs}
        lengths = torch.tensor([window.samples for window in windows], device=self._device)
        if len({_shapes(window) for window in windows}) > 1:
            positions = torch.arange(int(lengths.max()), device=self._device)
            inputs["attention_mask"] = (positions < lengths[:, None]).long()
        if self._options.pooling == "clip":
            features = self.module.get_audio_features(**inputs)
            vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
        else:
            vectors = self._pool(self.module(**inputs), lengths)
        return vectors.float()

    def _stack(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        return padded.to(self._device, self._dtype if padded.is_floating_point() else padded.dtype)

    def _pool(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        if self._options.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output
            return pooled
        hidden: torch.Tensor = output.last_hidden_state
        if self._options.pooling == "cls":
            return hidden[:, 0]
        frames = self._frames(lengths, hidden.shape[1])
        weights = (torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]).float()
        return torch.einsum("nfd,nf->nd", hidden.float(), weights) / frames[:, None]

    def _frames(self, lengths: torch.Tensor, frames: int) -> torch.Tensor:
        """How many of the model's frames are sound and not padding, int64 [n]."""
        if self._maskable:
            counted: torch.Tensor = self.module._get_feat_extract_output_lengths(lengths)
            return counted
        if self._fixed and self.module.config.is_encoder_decoder:
            return (lengths * frames / self._fixed).ceil().long().clamp(max=frames)
        return torch.full_like(lengths, frames)

    def _probe(self) -> int:
        """The dimension of the vectors, from a second of silence: what cannot run fails here."""
        try:
            return int(self.encode([self.preprocess(np.zeros(self._rate, np.float32))]).shape[1])
        except (IndexError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise invalid(self.spec, f"the model cannot encode sound: {error}") from error


def _shapes(window: Window) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in window.inputs.values())


def _maskable(config: Any) -> bool:
    return config.model_type in _MASKABLE and bool(config.feat_extract_norm == "layer")


def _lengths(extractor: Any) -> tuple[int, int]:
    """How many samples the extractor needs at least, and how many it pads and cuts everything to (0: it does not)."""
    rate = int(extractor.sampling_rate)
    padded = getattr(extractor, "chunk_length", None) or getattr(extractor, "max_length_s", None)
    if padded:  # Whisper, CLAP
        return 0, int(padded * rate)
    # The first convolutions of wav2vec 2.0 and AST's filterbank span 25 ms; AST has frames every 10 ms.
    frames = getattr(extractor, "max_length", 0) if hasattr(extractor, "num_mel_bins") else 0
    return rate // 40, frames * rate // 100


def _load_extractor(spec: EncoderSpec, folder: Path) -> Any:
    """transformers' AutoFeatureExtractor from `folder`. Raises JobError (`encoder_invalid`)."""
    from transformers import AutoFeatureExtractor

    extractor: Any = AutoFeatureExtractor  # its functions have no types
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "At least one mel filter")  # AST's own filterbank is so
            return extractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise invalid(spec, f"transformers cannot read the feature extractor of {folder}: {error}") from error
