"""Times the default audio encoder (MFCC statistics) against the plain librosa loop, on the same clips in one process.

    python tests/benchmarks/audio_features.py [clips] [seconds]

Prints milliseconds a clip (best of the rounds, which alternate) in one thread, the ratios, how far the vectors differ,
and what a fresh process needs until its first vector.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import subprocess  # noqa: E402  # threads are counted as numpy is imported
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import librosa  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from shared.ml.encoders.mfcc_stats import HOP, N_FFT, N_MELS, N_MFCC, SAMPLE_RATE, extract  # noqa: E402

ROUNDS = 5

FIRST_VECTOR = {
    "librosa": "from tests.benchmarks.audio_features import plain_loop as first",
    "trivium": "from shared.ml.encoders.mfcc_stats import extract as first",
}


def clips(count: int, seconds: float) -> list[NDArray[np.float32]]:
    """Rising tones with noise, always the same."""
    chance = np.random.default_rng(0)
    time_axis = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * pitch * time_axis * (1 + time_axis / 4)) for pitch in chance.uniform(80, 800, count)]
    return [(0.3 * tone + chance.normal(0, 0.01, len(tone))).astype(np.float32) for tone in tones]


def plain_loop(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same features as librosa's documentation computes each, from the waveform."""
    feature = librosa.feature
    frame = {"n_fft": N_FFT, "hop_length": HOP}
    mfcc = feature.mfcc(y=samples, sr=SAMPLE_RATE, n_mfcc=N_MFCC, n_mels=N_MELS, **frame)
    rows = [
        mfcc / 10,
        feature.delta(mfcc) / 10,
        feature.delta(mfcc, order=2) / 10,
        librosa.power_to_db(feature.melspectrogram(y=samples, sr=SAMPLE_RATE, n_mels=N_MELS, **frame)) / 10,
        feature.chroma_stft(y=samples, sr=SAMPLE_RATE, tuning=0.0, **frame),
        feature.spectral_contrast(y=samples, sr=SAMPLE_RATE, **frame) / 10,
        feature.spectral_centroid(y=samples, sr=SAMPLE_RATE, **frame) / 1000,
        feature.spectral_bandwidth(y=samples, sr=SAMPLE_RATE, **frame) / 1000,
        feature.spectral_rolloff(y=samples, sr=SAMPLE_RATE, **frame) / 1000,
        feature.spectral_flatness(y=samples, **frame),
        feature.rms(y=samples, frame_length=N_FFT, hop_length=HOP),
        feature.zero_crossing_rate(samples, frame_length=N_FFT, hop_length=HOP),
    ]
    frames = np.vstack(rows)
    return np.concatenate([frames.mean(1), frames.std(1), frames.min(1), frames.max(1)])


def seconds_to_first_vector(statement: str) -> float:
    """From starting a process to its first vector of one second of silence."""
    start = time.perf_counter()
    command = f"import numpy; {statement}; first(numpy.zeros({SAMPLE_RATE}, numpy.float32))"
    subprocess.run([sys.executable, "-c", command], check=True)
    return time.perf_counter() - start


def main(count: int = 64, seconds: float = 1.5) -> None:
    sounds = clips(count, seconds)
    runs: dict[str, Callable[[NDArray[np.float32]], NDArray[np.floating]]] = {"librosa": plain_loop, "trivium": extract}
    vectors = {name: np.stack([run(sound) for sound in sounds]) for name, run in runs.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for sound in sounds:
                run(sound)
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{count} clips of {seconds:g} s, one thread")
    for name, total in best.items():
        difference = np.abs(vectors["librosa"] - vectors[name]).max()
        first = seconds_to_first_vector(FIRST_VECTOR[name])
        print(
            f"  {name:8} {total / count * 1e3:6.2f} ms a clip  {best['librosa'] / total:5.2f}x"
            f"  largest difference {difference:.1e}  first vector after {first:.1f} s"
        )


if __name__ == "__main__":
    main(*(kind(argument) for kind, argument in zip((int, float), sys.argv[1:], strict=False)))
