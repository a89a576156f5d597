"""Statistics of classical audio features: MFCC, deltas, mel, chroma, contrast, spectral shape. librosa, no torch."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# By name: librosa loads its parts when they are first named, and decode processes want them before their first item.
from librosa import power_to_db, stft
from librosa.feature import (
    chroma_stft,
    delta,
    melspectrogram,
    mfcc,
    rms,
    spectral_bandwidth,
    spectral_centroid,
    spectral_contrast,
    spectral_flatness,
    spectral_rolloff,
    zero_crossing_rate,
)
from librosa.util import fix_length
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import fingerprint_of

Floats = NDArray[np.float32]

SAMPLE_RATE, N_FFT, HOP = 16_000, 1024, 256
N_MFCC, N_MELS, DELTA_WIDTH = 20, 64, 9

#: Features of a frame: MFCC with first and second derivative, mel, chroma, contrast, and six single numbers.
FEATURES = 3 * N_MFCC + N_MELS + 12 + 7 + 6
DIMENSION = 4 * FEATURES


def extract(samples: Floats) -> Floats:
    """Mono PCM at 16 kHz, float32 [samples ≥ 1], to float32 [596]: statistics of features over the frames.

    Mean, standard deviation, minimum and maximum in turn, each of 149 features: 20 MFCC (Davis and Mermelstein 1980),
    their first and second derivatives, 64 log mel bands, 12 chroma, 7 spectral contrasts (Jiang et al. 2002), and
    centroid, bandwidth, 85 % rolloff, flatness, RMS and zero-crossing rate. Powers are in bel and frequencies in kHz,
    so that all are of like size. Frames of 64 ms start every 16 ms; clips shorter than one are padded with zeros.
    """
    samples = fix_length(samples, size=max(len(samples), N_FFT))
    # One spectrum for everything: librosa's functions would each compute it anew.
    magnitude = np.abs(stft(samples, n_fft=N_FFT, hop_length=HOP))
    power = magnitude**2
    of_spectrum: dict[str, Any] = {"sr": SAMPLE_RATE, "n_fft": N_FFT}
    log_mel = power_to_db(melspectrogram(S=power, n_mels=N_MELS, **of_spectrum)) / 10
    cepstrum = mfcc(S=log_mel, n_mfcc=N_MFCC)
    ends = "interp" if cepstrum.shape[1] >= DELTA_WIDTH else "nearest"
    frames = np.vstack(
        [
            cepstrum,
            delta(cepstrum, width=DELTA_WIDTH, order=1, mode=ends),
            delta(cepstrum, width=DELTA_WIDTH, order=2, mode=ends),
            log_mel,
            chroma_stft(S=power, tuning=0.0, **of_spectrum),
            spectral_contrast(S=magnitude, **of_spectrum) / 10,
            spectral_centroid(S=magnitude, **of_spectrum) / 1000,
            spectral_bandwidth(S=magnitude, **of_spectrum) / 1000,
            spectral_rolloff(S=magnitude, **of_spectrum) / 1000,
            spectral_flatness(S=magnitude),
            rms(y=samples, frame_length=N_FFT, hop_length=HOP),
            zero_crossing_rate(samples, frame_length=N_FFT, hop_length=HOP),
        ]
    )
    return np.concatenate([frames.mean(1), frames.std(1), frames.min(1), frames.max(1)]).astype(np.float32)


class MfccStatsEncoder:
    """Runs `extract` in the decode processes; what is left to do here is to stack vectors."""

    def __init__(self, spec: EncoderSpec, _source: Path | None, _device: str, _precision: str):
        self.spec = spec
        self.dimension = DIMENSION
        self.decode_options: dict[str, Any] = {"sample_rate": SAMPLE_RATE, "extractor": "mfcc_stats"}
        self.fingerprint = fingerprint_of("", "float32", self.decode_options | {"librosa": version("librosa")})

    def preprocess(self, media: Media) -> Vectors:
        """The vector that decoding made, float32 [596], as it is."""
        return np.asarray(media, np.float32)

    def cost(self, _prepared: Vectors) -> int:
        """Every vector costs the same."""
        return 1

    def encode(self, batch: Sequence[Vectors]) -> Vectors:
        """Vectors to float32 [len(batch), 596]."""
        return np.stack(batch)
