"""Learned borders: only the border is trained, at the edge alone, and what comes of it is an encoder like any other."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load, load_file

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, TrainEncoder
from shared.items import PlannedItem
from shared.ml.encoder_training import train_encoder
from shared.ml.encoders.base import WEIGHTS, TrainableEncoder
from shared.ml.encoders.border import BORDER
from shared.ml.encoders.loading import load_encoder
from shared.ml.fitting import FittedModel
from shared.settings import WorkerSettings
from shared.testing.tiny import tiny_clip
from shared.worker.progress import Silence

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = WorkerSettings(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderSpec, EncoderSpec]:
    """The text and the image tower of a tiny CLIP."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def picture(number: int) -> NDArray[np.uint8]:
    """Noise; of one class a little brighter at the left, of the other at the right."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 200, (32, 32, 3))
    pixels[:, :16] += 30 * (number % 2)
    pixels[:, 16:] += 30 * (1 - number % 2)
    return pixels.astype(np.uint8)


def read(encoder: TrainableEncoder, items: Sequence[PlannedItem]) -> Iterator[tuple[PlannedItem, Any]]:
    for item in items:
        yield item, encoder.preprocess(picture(item.index))


@pytest.fixture(scope="module")
def fitted(clip: tuple[EncoderSpec, EncoderSpec]) -> FittedModel:
    """The image tower with a border of 4 pixels that was trained on 60 pictures."""
    body = {"type": "fine_tune", "features": "job-x", "train_encoder": "border"}
    body |= {"encoder_training": {"epochs": 6, "border": 0.125, "learning_rate": 0.05, "patience": 6}}
    items = [PlannedItem(index=i, id=f"i{i}", label=["ab"[i % 2]]) for i in range(80)]
    request = FineTuneRequest.model_validate(body)
    return train_encoder(clip[1], None, request, items[:60], items[60:], read=read, settings=CPU, progress=Silence())


def test_training_lowers_the_loss_and_changes_only_the_border(
    clip: tuple[EncoderSpec, EncoderSpec], fitted: FittedModel
) -> None:
    """Bit for bit; and of the picture only the edge, four pixels thick."""
    before = load_file(Path(clip[1].source) / WEIGHTS)
    after = load(fitted.files[WEIGHTS])
    assert after
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    border = load(fitted.files[BORDER])
    changed = border["pixels"].abs().sum(0) > 0
    assert changed[:4].all()
    assert changed[:, -4:].all()
    assert not changed[4:-4, 4:-4].any()
    facts = json.loads(fitted.files["training.json"])
    losses = [epoch["train_loss"] for epoch in facts["history"]]
    assert losses[-1] < losses[0]
    assert fitted.fingerprint != ""


def test_it_is_an_encoder_like_any_other(
    clip: tuple[EncoderSpec, EncoderSpec], fitted: FittedModel, tmp_path: Path
) -> None:
    """Its vectors are those of the plain encoder for pictures with the border on them."""
    for name, data in fitted.files.items():
        (tmp_path / name).write_bytes(data)
    ours = load_encoder(fitted.spec, device="cpu", precision="fp32", model_path=tmp_path)
    plain: Any = load_encoder(clip[1], device="cpu", precision="fp32")
    prepared = [plain.preprocess(picture(i)) for i in range(3)]
    border = load(fitted.files[BORDER])
    by_hand = [pixels + border["pixels"] * border["mask"] for pixels in prepared]
    np.testing.assert_allclose(ours.encode(prepared), plain.encode(by_hand), atol=1e-6)
    assert np.abs(ours.encode(prepared) - plain.encode(prepared)).max() > 1e-3
    assert ours.fingerprint != plain.fingerprint


def test_without_its_border_it_is_not_used(fitted: FittedModel, tmp_path: Path) -> None:
    for name, data in fitted.files.items():
        if name != BORDER:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(JobError) as raised:
        load_encoder(fitted.spec, device="cpu", precision="fp32", model_path=tmp_path)
    assert raised.value.error_code == "encoder_invalid"


def test_only_pictures_have_borders(clip: tuple[EncoderSpec, EncoderSpec]) -> None:
    text, image = clip
    assert image.is_trained(TrainEncoder.BORDER)
    assert not text.is_trained(TrainEncoder.BORDER)
