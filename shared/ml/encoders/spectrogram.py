"""Short-time spectra and the filterbanks on them, equal to librosa's, in numpy alone.

librosa's own functions would cost each decode process seconds of import and just-in-time compilation and 300 MB; these
are ready in milliseconds. Spectra are [frames, bins], one frame a row.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Power below this counts as silence (-100 dB).
POWER_FLOOR = 1e-10

_FRAMES_AT_ONCE = 2048


def frames_of(samples: Floats, n_fft: int, hop: int) -> Floats:
    """A view, float32 [1 + len(samples) // hop, n_fft]: frame k is centred on sample k·hop, with zeros outside."""
    padded = np.pad(samples, n_fft // 2)
    return np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]


def magnitudes(samples: Floats, n_fft: int, hop: int) -> Iterator[Floats]:
    """The Hann-windowed magnitude spectrum in blocks of float32 [≤ 2048 frames, n_fft // 2 + 1]."""
    frames = frames_of(samples, n_fft, hop)
    window = hann(n_fft)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(frames[start : start + _FRAMES_AT_ONCE] * window)
        yield np.abs(spectrum.astype(np.complex64))


@lru_cache
def hann(length: int) -> NDArray[np.float64]:
    """The periodic Hann window, float64 [length]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@lru_cache
def bin_frequencies(sample_rate: int, n_fft: int) -> NDArray[np.float64]:
    """The bins' centre frequencies in Hz, float64 [n_fft // 2 + 1]."""
    return np.linspace(0, sample_rate / 2, n_fft // 2 + 1)


@lru_cache
def mel_filterbank(sample_rate: int, n_fft: int, bands: int) -> Floats:
    """Triangular filters of equal area on Slaney's mel scale (Auditory Toolbox, 1998) up to half the sample rate.

    Returns float32 [bands, n_fft // 2 + 1].
    """
    edges = _mel_to_hz(np.linspace(0, _hz_to_mel(sample_rate / 2), bands + 2))
    width = np.diff(edges)
    distance = edges[:, None] - bin_frequencies(sample_rate, n_fft)
    rising = -distance[:-2] / width[:-1, None]
    falling = distance[2:] / width[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


@lru_cache
def chroma_filterbank(sample_rate: int, n_fft: int) -> Floats:
    """Gaussian bumps on the circle of the twelve pitch classes from C, A at 440 Hz (Ellis, Chroma analysis, 2007).

    Returns float32 [12, n_fft // 2 + 1]; octaves far from the fifth count less.
    """
    frequencies = np.arange(1, n_fft // 2 + 2) * (sample_rate / n_fft)
    semitones = 12 * np.log2(frequencies / 27.5)
    semitones = np.concatenate([[semitones[0] - 18], semitones])  # 0 Hz has no pitch: put it below the first bin
    width = np.maximum(np.diff(semitones), 1)
    semitones = semitones[:-1]
    distance = (semitones - np.arange(12)[:, None] + 6) % 12 - 6
    bumps = np.exp(-2 * (distance / width) ** 2)
    bumps *= np.exp(-((semitones / 12 - 5) ** 2) / 8) / np.linalg.norm(bumps, axis=0)
    return np.roll(bumps, -3, axis=0).astype(np.float32)


@lru_cache
def dct_matrix(coefficients: int, bands: int) -> Floats:
    """The orthonormal DCT-II, float32 [coefficients, bands]."""
    angles = np.pi / bands * np.outer(np.arange(coefficients), np.arange(bands) + 0.5)
    matrix: NDArray[np.float64] = np.cos(angles) * np.sqrt(2 / bands)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _hz_to_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else float(15 + np.log(hertz / 1000) * 27 / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
