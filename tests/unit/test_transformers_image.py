"""Hugging Face image encoders equal transformers itself, on small models with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.errors import ItemError, JobError
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.loading import load_encoder
from shared.ml.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
import transformers  # noqa: E402  # its image processors import torchvision

transformers.utils.logging.disable_progress_bar()

pytestmark = pytest.mark.usefixtures("one_thread")

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}
SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}


def vit() -> tuple[Any, Any]:
    return transformers.ViTModel(transformers.ViTConfig(**VISION)), transformers.ViTImageProcessor(**SQUARE)


def dinov2() -> tuple[Any, Any]:
    config = transformers.Dinov2Config(**{**VISION, "image_size": 40})
    return transformers.Dinov2Model(config), transformers.BitImageProcessor(**CROPPED)


def clip() -> tuple[Any, Any]:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.CLIPModel(config), transformers.CLIPImageProcessor(**CROPPED)


def siglip() -> tuple[Any, Any]:
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    return transformers.SiglipModel(config), transformers.SiglipImageProcessor(**SQUARE)


def resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], layer_type="basic")
    return transformers.ResNetModel(config), transformers.ConvNextImageProcessor(size={"shortest_edge": 32})


Builder = Callable[[], tuple[Any, Any]]
Saved = tuple[str, Any, Any]


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    """The folder, model and processor of the builder that parametrises the test."""
    return save(request.param, tmp_path)


def save(builder: Builder, folder: Path) -> Saved:
    torch.manual_seed(0)
    model, processor = builder()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), model, processor


def pictures() -> list[NDArray[np.uint8]]:
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (33, 32), (3, 9), (200, 90))]


def encoder_of(source: str, dimension: int, precision: Any = "fp32", **options: Any) -> Encoder:
    spec = EncoderSpec(
        id="tiny", modality="image", dimension=dimension, loader="transformers", source=source, options=options
    )
    return load_encoder(spec, device="cpu", precision=precision)


def error_of(source: str, dimension: int, **options: Any) -> str:
    with pytest.raises(JobError) as caught:
        encoder_of(source, dimension, **options)
    return caught.value.error_code


def reference(model: Any, processor: Any, pooling: str) -> Vectors:
    rows = []
    for picture in pictures():
        inputs = processor(images=picture, return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            if pooling == "clip":
                row = model.get_image_features(**inputs).pooler_output
            elif pooling == "pooler":
                row = model(**inputs).pooler_output.flatten(1)
            else:
                hidden = model(**inputs).last_hidden_state
                tokens = hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
                row = tokens[:, 0] if pooling == "cls" else tokens.mean(1)
        rows.append(row.numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("saved", "pooling", "dimension"),
    [
        (vit, "cls", 32),
        (vit, "mean", 32),
        (vit, "pooler", 32),
        (dinov2, "cls", 32),
        (dinov2, "mean", 32),
        (clip, "clip", 16),
        (siglip, "clip", 32),
        (resnet, "mean", 32),
        (resnet, "pooler", 32),
    ],
    indirect=["saved"],
)
def test_equals_transformers(saved: Saved, pooling: str, dimension: int) -> None:
    source, model, processor = saved
    encoder = encoder_of(source, dimension, pooling=pooling)
    prepared = [encoder.preprocess(picture) for picture in pictures()]
    expected = reference(model, processor, pooling)
    vectors = encoder.encode(prepared)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, encoder.dimension) == (4, dimension)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([encoder.encode([item]) for item in prepared]), expected, atol=1e-4)
    assert encoder.cost(prepared[0]) == 32 * 32
    assert encoder.decode_options == {}


@pytest.mark.parametrize("saved", [clip], indirect=True)
def test_normalize_and_fingerprints(saved: Saved) -> None:
    source, model, processor = saved
    plain, unit = encoder_of(source, 16, pooling="clip"), encoder_of(source, 16, pooling="clip", normalize=True)
    expected = reference(model, processor, "clip")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = unit.encode([unit.preprocess(picture) for picture in pictures()])
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    half = encoder_of(source, 16, "bf16", pooling="clip")
    assert len({plain.fingerprint, unit.fingerprint, half.fingerprint}) == 3
    assert encoder_of(source, 16, pooling="clip").fingerprint == plain.fingerprint


@pytest.mark.parametrize("saved", [vit], indirect=True)
def test_bf16_is_close(saved: Saved) -> None:
    exact, half = encoder_of(saved[0], 32), encoder_of(saved[0], 32, "bf16")
    one, other = (encoder.encode([encoder.preprocess(p) for p in pictures()]) for encoder in (exact, half))
    assert ((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min() > 0.999


@pytest.mark.parametrize("saved", [clip], indirect=True)
def test_images_that_scaling_would_blow_up_are_refused(saved: Saved) -> None:
    encoder = encoder_of(saved[0], 16, pooling="clip")
    with pytest.raises(ItemError) as caught:
        encoder.preprocess(np.zeros((1, 60_000, 3), np.uint8))
    assert caught.value.error_code == "media_too_large"


@pytest.mark.parametrize("saved", [vit], indirect=True)
def test_decoded_arrays_may_be_read_only(saved: Saved) -> None:
    encoder = encoder_of(saved[0], 32)
    picture = np.frombuffer(pictures()[0].tobytes(), np.uint8).reshape(40, 60, 3)
    np.testing.assert_array_equal(encoder.preprocess(picture), encoder.preprocess(pictures()[0]))


@pytest.mark.parametrize("saved", [vit], indirect=True)
def test_entries_that_do_not_fit(saved: Saved, tmp_path: Path) -> None:
    source = saved[0]
    assert error_of(source, 33) == "encoder_invalid"
    assert error_of(source, 32, pooling="clip") == "encoder_invalid"
    assert error_of(source, 32, pooling="median") == "encoder_invalid"
    assert error_of(source, 32, colour=1) == "encoder_invalid"
    (tmp_path / "preprocessor_config.json").unlink()
    assert error_of(source, 32) == "encoder_invalid"
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert error_of(source, 32) == "encoder_invalid"
    assert error_of(str(tmp_path / "absent"), 32) == "encoder_unavailable"


@pytest.mark.parametrize("saved", [resnet], indirect=True)
def test_a_map_has_no_first_token(saved: Saved) -> None:
    assert error_of(saved[0], 32, pooling="cls") == "encoder_invalid"


@pytest.mark.parametrize("saved", [vit], indirect=True)
def test_code_beside_the_weights_is_not_run(saved: Saved, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        described = json.loads((tmp_path / name).read_text())
        described["auto_map"] = {"AutoModel": "evil.Model", "AutoImageProcessor": "evil.Processor"}
        described["image_processor_type"] = described["model_type"] = "unheard_of"
        (tmp_path / name).write_text(json.dumps(described))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    assert error_of(saved[0], 32) == "encoder_invalid"
    assert not (tmp_path / "exploded").exists()
