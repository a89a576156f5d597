"""Speaker embeddings: who speaks, not what is said.

Wan et al., Generalized end-to-end loss for speaker verification, 2018; the weights are Resemblyzer's. Unlike there,
pauses are not cut out first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from librosa.feature import melspectrogram
from numpy.typing import NDArray
from torch import nn

from shared.catalog import EncoderSpec
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import digest_of, fingerprint_of, load_packaged_weights
from shared.ml.encoders.pretrained import invalid

SAMPLE_RATE, N_FFT, HOP, N_MELS = 16_000, 400, 160, 40
HIDDEN, LAYERS, DIMENSION = 256, 3, 256

#: An utterance is cut into windows of 1.6 s (160 frames), 1.3 a second; the last one counts if 75 % of it is sound.
WINDOW, STEP, MIN_COVERAGE = 160, 77, 0.75

#: Quieter utterances are raised to this power (-30 dBFS).
_MIN_POWER = 1e-3

#: float32 [windows, 160 frames, 40 mel bands]
Windows = NDArray[np.float32]


class SpeakerNetwork(nn.Module):
    """Three LSTM layers over mel frames; the last state of the last, projected, rectified and scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, HIDDEN, LAYERS, batch_first=True)
        self.linear = nn.Linear(HIDDEN, DIMENSION)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """float32 [n, frames, 40] to float32 [n, 256]."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class SpeakerEncoder:
    """Speech at 16 kHz to the mean of its windows' embeddings, scaled to length 1; always in fp32."""

    def __init__(self, spec: EncoderSpec, source: Path | None, device: str, _precision: Precision):
        if source is None:
            raise invalid(spec, "it needs a source of weights")
        self.spec = spec
        self.dimension = DIMENSION
        self.decode_options: dict[str, Any] = {"sample_rate": SAMPLE_RATE}
        self._device = choose_device(device)
        network = SpeakerNetwork()
        state = load_packaged_weights(source)["model_state"]
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        dtype = choose_dtype(self._device, "fp32")
        self._network = network.eval().requires_grad_(False).to(self._device, dtype)
        self.fingerprint = fingerprint_of(digest_of([source]), str(dtype), {"window": WINDOW, "step": STEP})

    def preprocess(self, media: Media) -> Windows:
        """Mono PCM, float32 [samples], to mel spectrograms of its windows, quiet speech raised to -30 dBFS."""
        samples = np.asarray(media, np.float32)
        power = float(np.mean(np.square(samples, dtype=np.float64)))
        if 0 < power < _MIN_POWER:
            samples = samples * np.float32(np.sqrt(_MIN_POWER / power))
        return windows_of(samples)

    def cost(self, prepared: Windows) -> int:
        """Samples."""
        return len(prepared) * WINDOW * HOP

    @torch.inference_mode()
    def encode(self, batch: Sequence[Windows]) -> Vectors:
        """Windows of utterances to float32 [len(batch), 256]."""
        counts = [len(windows) for windows in batch]
        windows = torch.from_numpy(np.concatenate(batch)).to(self._device)
        embeddings = self._network(windows).split(counts)
        means = torch.stack([embedding.mean(0) for embedding in embeddings])
        vectors: Vectors = nn.functional.normalize(means, dim=1).cpu().numpy()
        return vectors


def windows_of(samples: NDArray[np.float32]) -> Windows:
    """Power mel spectrograms of an utterance's windows, one at least; zeros pad the end."""
    frames = -(-(len(samples) + 1) // HOP)
    starts = range(0, max(1, frames - WINDOW + STEP + 1), STEP)
    coverage = (len(samples) - starts[-1] * HOP) / (WINDOW * HOP)
    if coverage < MIN_COVERAGE and len(starts) > 1:
        starts = starts[:-1]
    padded = np.pad(samples, (0, max((starts[-1] + WINDOW) * HOP - len(samples), 0)))
    mel = melspectrogram(y=padded, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP, n_mels=N_MELS).T
    return np.stack([mel[start : start + WINDOW] for start in starts])
