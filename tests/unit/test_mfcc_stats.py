"""The statistics of classical audio features, feature by feature, from librosa's functions on the waveform."""

import io

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.audio.preprocess import decode
from shared.catalog import load_catalog
from shared.ml.encoders.loading import load_encoder
from shared.ml.encoders.mfcc_stats import DIMENSION, extract

Samples = NDArray[np.float32]

RATE, N_FFT, HOP = 16_000, 1024, 256


def librosa_features(samples: Samples) -> NDArray[np.float64]:
    """The same statistics from librosa's functions: powers in dB turned to bel, frequencies in Hz to kHz."""
    feature = librosa.feature
    samples = np.pad(samples, (0, max(N_FFT - len(samples), 0)))
    frame = {"sr": RATE, "n_fft": N_FFT, "hop_length": HOP}
    mel = librosa.power_to_db(feature.melspectrogram(y=samples, n_mels=64, **frame))
    mfcc = feature.mfcc(S=mel, n_mfcc=20)
    ends = "interp" if mfcc.shape[1] >= 9 else "nearest"
    rows = [
        mfcc / 10,
        feature.delta(mfcc, mode=ends) / 10,
        feature.delta(mfcc, order=2, mode=ends) / 10,
        mel / 10,
        feature.chroma_stft(y=samples, tuning=0.0, **frame),
        feature.spectral_contrast(y=samples, **frame) / 10,
        feature.spectral_centroid(y=samples, **frame) / 1000,
        feature.spectral_bandwidth(y=samples, **frame) / 1000,
        feature.spectral_rolloff(y=samples, **frame) / 1000,
        feature.spectral_flatness(y=samples, n_fft=N_FFT, hop_length=HOP),
        feature.rms(y=samples, frame_length=N_FFT, hop_length=HOP),
        feature.zero_crossing_rate(samples, frame_length=N_FFT, hop_length=HOP),
    ]
    frames = np.vstack(rows)
    return np.concatenate([frames.mean(1), frames.std(1), frames.min(1), frames.max(1)])


def chirp(samples: int, amplitude: float = 0.3, noise: float = 0.01) -> Samples:
    time = np.arange(samples) / RATE
    tone = amplitude * np.sin(2 * np.pi * 440 * time * (1 + time / 4))
    return (tone + np.random.default_rng(samples).normal(0, noise * amplitude, samples)).astype(np.float32)


CLIPS = {
    "chirp": chirp(24_000),
    "quiet": chirp(24_000, amplitude=1e-5),
    "noise": np.random.default_rng(0).normal(0, 0.2, 16_000).astype(np.float32),
    "clipped": np.sign(chirp(16_000)).astype(np.float32),
    "offset": np.full(8_000, 0.5, np.float32),
    "silence": np.zeros(8_000, np.float32),
    "impulse": np.eye(1, 8_000, 4_000, dtype=np.float32)[0],
    "sound then silence": np.concatenate([chirp(8_000), np.zeros(8_000, np.float32)]),
    "a minute": np.tile(chirp(96_000), 10),
    "one sample": chirp(1) + np.float32(0.1),
}


@pytest.mark.parametrize("name", CLIPS)
def test_equals_librosa(name: str) -> None:
    vector = extract(CLIPS[name])
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, librosa_features(CLIPS[name]), atol=1e-4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(length=st.integers(1, 12_000), amplitude=st.sampled_from([1e-4, 0.1, 1.0]))
def test_equals_librosa_at_any_length(length: int, amplitude: float) -> None:
    clip = chirp(length, amplitude, noise=0.1)
    np.testing.assert_allclose(extract(clip), librosa_features(clip), atol=1e-4)


def test_the_encoder_extracts_while_decoding() -> None:
    encoder = load_encoder(load_catalog()["mfcc-stats"], device="cpu")
    assert encoder.dimension == DIMENSION
    clips = [chirp(30_000), chirp(8_000)]
    prepared = []
    for clip in clips:
        buffer = io.BytesIO()
        soundfile.write(buffer, clip, RATE, format="WAV", subtype="FLOAT")
        prepared.append(encoder.preprocess(decode(buffer.getvalue(), encoder.decode_options)))
    vectors = encoder.encode(prepared)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([extract(clip) for clip in clips]))
    assert [encoder.cost(item) for item in prepared] == [1, 1]
