"""The statistics of classical audio features equal what librosa's own functions give."""

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
from shared.ml.encoders import spectrogram
from shared.ml.encoders.loading import load_encoder
from shared.ml.encoders.mfcc_stats import DIMENSION, extract

Samples = NDArray[np.float32]

RATE, N_FFT, HOP = 16_000, 1024, 256

pytestmark = pytest.mark.filterwarnings("ignore:n_fft=1024 is too large for input signal:UserWarning")


def librosa_features(samples: Samples) -> NDArray[np.float64]:
    """The same statistics from librosa's functions: powers in dB turned to bel, frequencies in Hz to kHz."""
    feature = librosa.feature
    magnitude = np.abs(librosa.stft(samples, n_fft=N_FFT, hop_length=HOP))
    power = magnitude**2
    mel = librosa.power_to_db(feature.melspectrogram(S=power, sr=RATE, n_mels=64))
    mfcc = feature.mfcc(S=mel, n_mfcc=20)
    ends = "interp" if mfcc.shape[1] >= 9 else "nearest"
    rows = [
        mfcc / 10,
        feature.delta(mfcc, mode=ends) / 10,
        feature.delta(mfcc, order=2, mode=ends) / 10,
        mel / 10,
        feature.chroma_stft(S=power, sr=RATE, tuning=0.0),
        feature.spectral_contrast(S=magnitude, sr=RATE) / 10,
        feature.spectral_centroid(S=magnitude, sr=RATE) / 1000,
        feature.spectral_bandwidth(S=magnitude, sr=RATE) / 1000,
        feature.spectral_rolloff(S=magnitude, sr=RATE) / 1000,
        feature.spectral_flatness(S=magnitude),
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


@pytest.mark.parametrize(("rate", "n_fft", "bands"), [(16_000, 1024, 64), (16_000, 400, 40), (22_050, 2048, 128)])
def test_filterbanks_equal_librosa(rate: int, n_fft: int, bands: int) -> None:
    mel = spectrogram.mel_filterbank(rate, n_fft, bands)
    np.testing.assert_allclose(mel, librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands), atol=1e-8)
    chroma = spectrogram.chroma_filterbank(rate, n_fft)
    np.testing.assert_allclose(chroma, librosa.filters.chroma(sr=rate, n_fft=n_fft), atol=1e-7)


def test_spectrum_equals_librosa_bit_for_bit_across_blocks() -> None:
    samples = chirp(700_000)
    blocks = list(spectrogram.magnitudes(samples, N_FFT, HOP))
    assert len(blocks) == 2
    expected = np.abs(librosa.stft(samples, n_fft=N_FFT, hop_length=HOP)).T
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


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
