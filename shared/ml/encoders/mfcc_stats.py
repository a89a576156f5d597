"""Statistics of classical audio features: MFCC, deltas, mel, chroma, contrast, spectral shape. No weights, no torch.

The features are librosa's, from one spectrum; see `spectrogram` for why librosa itself is not called.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import fingerprint_of
from shared.ml.encoders.spectrogram import (
    POWER_FLOOR,
    Floats,
    bin_frequencies,
    chroma_filterbank,
    dct_matrix,
    frames_of,
    magnitudes,
    mel_filterbank,
)

SAMPLE_RATE, N_FFT, HOP = 16_000, 1024, 256
N_MFCC, N_MELS = 20, 64
#: Octaves of the spectral contrast: 0 to 200 Hz, to 400, to 800 … to 8000.
CONTRAST_EDGES = (0.0, 200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0, 12_800.0)
CONTRAST_QUANTILE, ROLLOFF = 0.02, 0.85
DELTA_WIDTH = 9

#: Features of a frame: MFCC with first and second derivative, mel, chroma, contrast, and six single numbers.
FEATURES = 3 * N_MFCC + N_MELS + 12 + (len(CONTRAST_EDGES) - 1) + 6
DIMENSION = 4 * FEATURES

#: Powers this many bels (1 bel = 10 dB) below the loudest are raised to it.
_DYNAMIC_RANGE = 8


def extract(samples: Floats) -> Floats:
    """Mono PCM at 16 kHz, float32 [samples ≥ 1], to float32 [596]: statistics of features over the frames.

    Mean, standard deviation, minimum and maximum in turn, each of 149 features: 20 MFCC (Davis and Mermelstein 1980),
    their first and second derivatives, 64 log mel bands, 12 chroma, 7 spectral contrasts (Jiang et al. 2002), and
    centroid, bandwidth, 85 % rolloff, flatness, RMS and zero-crossing rate. Powers are in bel and frequencies in kHz,
    so that all are of like size. Frames of 64 ms start every 16 ms. Silence and any length give finite numbers.
    """
    blocks = [_of_spectrum(block) for block in magnitudes(samples, N_FFT, HOP)]
    mel, chroma, peaks, valleys, shape = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    log_mel = _bel(mel)
    mfcc = log_mel @ dct_matrix(N_MFCC, N_MELS).T
    cepstral = [mfcc, _delta(mfcc, 1), _delta(mfcc, 2)]
    spectral = [log_mel, chroma, _bel(peaks) - _bel(valleys), shape]
    frames = np.hstack([*cepstral, *spectral, _rms(samples), _zero_crossings(samples)])
    return np.concatenate([frames.mean(0), frames.std(0), frames.min(0), frames.max(0)]).astype(np.float32)


class MfccStatsEncoder:
    """Runs `extract` in the decode processes; what is left to do here is to stack vectors."""

    def __init__(self, spec: EncoderSpec, _source: Path | None, _device: str, _precision: str):
        self.spec = spec
        self.dimension = DIMENSION
        self.decode_options: dict[str, Any] = {"sample_rate": SAMPLE_RATE, "extractor": "mfcc_stats"}
        self.fingerprint = fingerprint_of("", "float32", self.decode_options | {"version": 1})

    def preprocess(self, media: Media) -> Vectors:
        """The vector that decoding made, float32 [596], as it is."""
        return np.asarray(media, np.float32)

    def cost(self, _prepared: Vectors) -> int:
        """Every vector costs the same."""
        return 1

    def encode(self, batch: Sequence[Vectors]) -> Vectors:
        """Vectors to float32 [len(batch), 596]."""
        return np.stack(batch)


def _of_spectrum(magnitude: Floats) -> tuple[Floats, ...]:
    """What is a function of one frame's magnitude spectrum: mel power, chroma, contrast peaks and valleys, shape."""
    power = magnitude**2
    mel = power @ mel_filterbank(SAMPLE_RATE, N_FFT, N_MELS).T
    chroma = power @ chroma_filterbank(SAMPLE_RATE, N_FFT).T
    chroma /= _or_one(chroma.max(axis=1, keepdims=True))
    return mel, chroma, *_contrast(magnitude), _shape(magnitude, power)


def _contrast(magnitude: Floats) -> tuple[Floats, Floats]:
    """Mean of the loudest and of the quietest 2 % of the bins in each octave, float32 [frames, 7] each."""
    peaks, valleys = [], []
    for band, count in _contrast_bands():
        ordered = np.sort(magnitude[:, band], axis=1)
        peaks.append(ordered[:, -count:].mean(axis=1))
        valleys.append(ordered[:, :count].mean(axis=1))
    return np.stack(peaks, axis=1), np.stack(valleys, axis=1)


@lru_cache
def _contrast_bands() -> tuple[tuple[slice, int], ...]:
    """The bins of each octave, and how many of them are 2 %. Each octave starts one bin below its edge."""
    frequencies = bin_frequencies(SAMPLE_RATE, N_FFT)
    bands = []
    for low, high in pairwise(CONTRAST_EDGES):
        start = max(int(np.searchsorted(frequencies, low)) - 1, 0)
        stop = int(np.searchsorted(frequencies, high, side="right"))
        count = max(round(CONTRAST_QUANTILE * (stop - start)), 1)
        bands.append((slice(start, stop if high >= frequencies[-1] else stop - 1), count))
    return tuple(bands)


def _shape(magnitude: Floats, power: Floats) -> Floats:
    """Centroid, bandwidth and rolloff (kHz) and flatness (0 to 1), float32 [frames, 4]."""
    kilohertz = bin_frequencies(SAMPLE_RATE, N_FFT) / 1000
    share = magnitude / _or_one(magnitude.sum(axis=1, keepdims=True))
    centroid = share @ kilohertz
    bandwidth = np.sqrt(np.einsum("fb,fb->f", share, (kilohertz - centroid[:, None]) ** 2))
    cumulative = np.cumsum(magnitude, axis=1)
    rolloff = kilohertz[np.argmax(cumulative >= ROLLOFF * cumulative[:, -1:], axis=1)]
    audible = np.maximum(power, np.float32(POWER_FLOOR))
    flatness = np.exp(np.log(audible).mean(axis=1)) / audible.mean(axis=1)
    return np.stack([centroid, bandwidth, rolloff, flatness], axis=1).astype(np.float32)


def _rms(samples: Floats) -> Floats:
    """Root mean square, float32 [frames, 1]."""
    frames = frames_of(samples, N_FFT, HOP)
    power: Floats = np.einsum("fs,fs->f", frames, frames) / np.float32(N_FFT)
    return np.sqrt(power)[:, None]


def _zero_crossings(samples: Floats) -> NDArray[np.float64]:
    """Sign changes a sample, float64 [frames, 1]; beyond its ends the signal stays as it is there."""
    negative = np.pad(samples < -POWER_FLOOR, N_FFT // 2, mode="edge")
    changes = np.concatenate([[0], np.cumsum(negative[1:] != negative[:-1])])
    rate: NDArray[np.float64] = (changes[N_FFT - 1 :] - changes[: 1 - N_FFT])[::HOP] / N_FFT
    return rate[:, None]


def _delta(features: Floats, order: int) -> Floats:
    """The derivative over frames by a polynomial of that order fitted to 9 frames, float32 like `features`.

    In the first and last four frames it is that of the first and last whole window; with fewer than 9 frames, the
    signal's ends are held.
    """
    half = DELTA_WIDTH // 2
    held = np.pad(features, ((half, half), (0, 0)), mode="edge") if len(features) < DELTA_WIDTH else features
    windows = np.lib.stride_tricks.sliding_window_view(held, DELTA_WIDTH, axis=0)
    delta: Floats = windows @ _derivative_weights(order)
    return delta if held is not features else np.pad(delta, ((half, half), (0, 0)), mode="edge")


@lru_cache
def _derivative_weights(order: int) -> Floats:
    """Least-squares weights of the `order`-th derivative at the middle of 9 frames (Savitzky and Golay 1964)."""
    half = DELTA_WIDTH // 2
    powers = np.vander(np.arange(-half, half + 1), order + 1, increasing=True)
    weights: NDArray[np.float64] = np.linalg.pinv(powers)[order] * factorial(order)
    return weights.astype(np.float32)


def _bel(power: Floats) -> Floats:
    """log10 of power, no lower than 8 below its maximum."""
    bel: Floats = np.log10(np.maximum(power, np.float32(POWER_FLOOR)))
    floor: np.float32 = bel.max() - np.float32(_DYNAMIC_RANGE)
    return np.maximum(bel, floor)


def _or_one(values: Floats) -> Floats:
    """`values` with 1 for those too small to divide by."""
    return np.where(values < np.finfo(np.float32).tiny, np.float32(1), values)
