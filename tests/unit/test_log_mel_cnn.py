"""The convolutional network on log-mel spectrograms: it tells sounds apart, of whatever length, and learns robustly."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from services.audio.preprocess import decode
from shared.catalog import EncoderSpec, load_catalog
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.items import PlannedItem
from shared.ml.encoder_training import train_encoder
from shared.ml.encoders.base import Encoder, TrainableEncoder, Vectors
from shared.ml.encoders.loading import load_encoder, load_trainable
from shared.ml.encoders.log_mel import N_MELS, log_mel
from shared.ml.encoders.log_mel_cnn import spec_augment
from shared.settings import WorkerSettings
from shared.testing.tiny import SAMPLE_RATE, sounds, tiny_cnn
from shared.worker.progress import Silence

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = WorkerSettings(device="cpu", precision="fp32")
Sounds = list[tuple[bytes, str]]


def vectors(encoder: Encoder, chosen: Sounds) -> Vectors:
    """As a pool computes them."""
    return encoder.encode([encoder.preprocess(decode(data, encoder.decode_options)) for data, _ in chosen])


def accuracy(encoder: Encoder, known: Sounds, test: Sounds) -> float:
    """Of a linear model on standardised vectors."""
    rows = vectors(encoder, known)
    mean, std = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    model = LogisticRegression(max_iter=5000).fit((rows - mean) / std, [kind for _, kind in known])
    return float(model.score((vectors(encoder, test) - mean) / std, [kind for _, kind in test]))


def trained(spec: EncoderSpec, train: Sounds, validation: Sounds, folder: Path) -> Encoder:
    """The network after a fit, as a pool loads it."""
    chosen = [*train, *validation]
    items = [PlannedItem(index=i, id=f"s{i}", label=[kind]) for i, (_, kind) in enumerate(chosen)]

    def read(encoder: TrainableEncoder, wanted: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
        for item in wanted:
            yield item, encoder.preprocess(decode(chosen[item.index][0], encoder.decode_options))

    training = {"epochs": 10, "learning_rate": 3e-3}
    request = FineTuneRequest.model_validate({"type": "fine_tune", "features": "job-x", "encoder_training": training})
    parts = items[: len(train)], items[len(train) :]
    model = train_encoder(spec, None, request, *parts, read=read, settings=CPU, progress=Silence())
    assert json.loads(model.files["training.json"])["recipe"]["lora_rank"] is None
    for name, data in model.files.items():
        (folder / name).write_bytes(data)
    return load_encoder(spec, device="cpu", model_path=folder)


@pytest.fixture
def network(tmp_path: Path) -> Encoder:
    """With random weights, loaded from what was saved."""
    torch.manual_seed(0)
    load_trainable(tiny_cnn(), device="cpu").save(tmp_path)
    return load_encoder(tiny_cnn(), device="cpu", model_path=tmp_path)


def test_it_tells_tones_chirps_and_noise_apart(tmp_path: Path) -> None:
    """As the statistics of classical features do, which were made for it."""
    train, validation, test = sounds(100, 0), sounds(40, 1), sounds(80, 2)
    classical = accuracy(load_encoder(load_catalog()["mfcc-stats"]), [*train, *validation], test)
    learned = accuracy(trained(tiny_cnn(), train, validation, tmp_path), [*train, *validation], test)
    assert classical >= 0.9
    assert learned >= 0.9


def test_its_spectrograms_are_librosas() -> None:
    """25 ms every 10 ms, in bel."""
    samples = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=N_MELS, fmin=20.0
    )
    expected = np.log10(np.maximum(power, 1e-10)).T
    np.testing.assert_allclose(log_mel(samples), expected, atol=1e-4)
    assert log_mel(samples).shape == (101, N_MELS)


@pytest.mark.parametrize("samples", [1, 100, SAMPLE_RATE, SAMPLE_RATE * 7 + 123])
def test_sound_of_any_length_has_a_vector(network: Encoder, samples: int) -> None:
    """Silence too; and batches change nothing."""
    sound = np.random.default_rng(samples).normal(scale=0.1, size=samples).astype(np.float32)
    batch = [network.preprocess(log_mel(one)) for one in (sound, np.zeros_like(sound))]
    rows = network.encode(batch)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[:1], network.encode(batch[:1]), atol=1e-5)


def test_a_long_sound_is_the_mean_of_its_windows(network: Encoder) -> None:
    """Which start at both ends and evenly between."""
    spectrogram = np.random.default_rng(0).normal(size=(250, N_MELS)).astype(np.float32)
    parts = [spectrogram[:100], spectrogram[75:175], spectrogram[150:]]
    whole = network.encode([network.preprocess(spectrogram)])
    np.testing.assert_allclose(whole[0], network.encode(parts).mean(axis=0), atol=1e-5)


def test_stripes_are_masked_in_training_only() -> None:
    """Up to a quarter of the bands and of the frames; of each sound others."""
    torch.manual_seed(0)
    kept = spec_augment(torch.ones(50, N_MELS, 200))
    bands, frames = (kept.amax(2) > 0).float().mean(1), (kept.amax(1) > 0).float().mean(1)
    assert bands.min() >= 0.74
    assert frames.min() >= 0.74
    assert 0.8 < bands.mean() < 0.95
    assert len({tuple(row.tolist()) for row in (kept.amax(2) > 0)}) > 25


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """In words."""
    load_trainable(tiny_cnn(), device="cpu").save(tmp_path)
    with pytest.raises(JobError, match="does not hold this network") as caught:
        load_encoder(tiny_cnn(channels=(4, 4)), device="cpu", model_path=tmp_path)
    assert caught.value.error_code == "encoder_invalid"
