"""torchvision encoders equal torchvision: weights.transforms() and the model itself, up to its last layer."""

import io
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from services.image.preprocess import decode
from shared.catalog import EncoderSpec, load_catalog
from shared.errors import JobError
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.loading import load_encoder, load_packaged_weights, resolve_source
from shared.ml.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
from torchvision import models  # noqa: E402  # importable from here on

pytestmark = pytest.mark.usefixtures("one_thread")


def photos(count: int = 3) -> list[Image.Image]:
    """Pictures of different sizes: coarse patterns with noise."""
    sizes = [(300, 200), (224, 500), (90, 70), (640, 480), (224, 224), (1000, 257)]
    chance = np.random.default_rng(0)
    return [
        Image.blend(noise(size, size, chance), noise((9, 7), size, chance), 0.7) for size in (sizes * count)[:count]
    ]


def noise(grain: tuple[int, int], size: tuple[int, int], chance: np.random.Generator) -> Image.Image:
    """A picture of random colours, `grain` of them, stretched to `size`."""
    pixels = chance.integers(0, 256, (grain[1], grain[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def vectors_of(encoder: Encoder, images: list[Image.Image]) -> Vectors:
    """From PNG bytes to vectors, as a worker goes about it."""
    prepared = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        prepared.append(encoder.preprocess(decode(buffer.getvalue(), encoder.decode_options)))
    return encoder.encode(prepared)


def reference(model: nn.Module, weights: Any, images: list[Image.Image]) -> Vectors:
    """What enters the model's last layer, averaged over positions where that is a convolution."""
    seen: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.eval()(torch.stack([weights.transforms()(image) for image in images]))
    features = seen[0] if seen[0].ndim == 2 else seen[0].mean((2, 3))
    array: Vectors = features.numpy()
    return array


def spec_of(arch: str, dimension: int, source: str = "", weights: str = "DEFAULT") -> EncoderSpec:
    options = {"arch": arch, "weights": weights} if source else {"weights": weights}
    return EncoderSpec(
        id=arch, modality="image", dimension=dimension, loader="torchvision", source=source or arch, options=options
    )


def seeded_model(arch: str) -> nn.Module:
    """A model with random weights, whose batch normalisations are those of the test's pictures, then disturbed."""
    torch.manual_seed(0)
    builder: dict[str, Any] = {"googlenet": {"transform_input": True, "init_weights": True, "aux_logits": True}}
    model: nn.Module = models.get_model(arch, weights=None, **builder.get(arch, {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    weights = models.get_model_weights(arch).DEFAULT
    with torch.no_grad():
        model.train()(torch.stack([weights.transforms()(image) for image in photos(4)]))
    return model


def save(model: nn.Module, folder: Path) -> str:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)


def error_of(spec: EncoderSpec) -> JobError:
    with pytest.raises(JobError) as caught:
        load_encoder(spec, device="cpu", precision="fp32")
    return caught.value


@pytest.fixture(scope="module")
def mobilenet() -> Encoder:
    return load_encoder(load_catalog()["mobilenet_v2"], device="cpu", precision="fp32")


def test_mobilenet_equals_torchvision_with_the_packaged_weights(mobilenet: Encoder) -> None:
    model = models.mobilenet_v2()
    path = resolve_source(load_catalog()["mobilenet_v2"])
    assert path is not None
    model.load_state_dict(load_packaged_weights(path))
    images = photos(12)
    vectors = vectors_of(mobilenet, images)
    assert vectors.dtype == np.float32
    assert vectors.shape == (12, mobilenet.dimension) == (12, 1280)
    np.testing.assert_allclose(vectors, reference(model, models.MobileNet_V2_Weights.IMAGENET1K_V1, images), atol=1e-4)


def test_a_vector_does_not_depend_on_its_batch(mobilenet: Encoder) -> None:
    images = photos(10)
    alone = np.concatenate([vectors_of(mobilenet, [image]) for image in images])
    np.testing.assert_allclose(vectors_of(mobilenet, images), alone, atol=1e-4)


def test_bf16_is_close_and_has_its_own_fingerprint(mobilenet: Encoder) -> None:
    spec = load_catalog()["mobilenet_v2"]
    half = load_encoder(spec, device="cpu", precision="bf16")
    exact, rounded = vectors_of(mobilenet, photos(6)), vectors_of(half, photos(6))
    assert rounded.dtype == np.float32
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.99
    assert half.fingerprint != mobilenet.fingerprint
    assert load_encoder(spec, device="cpu", precision="fp32").fingerprint == mobilenet.fingerprint


ARCHITECTURES = {
    "resnet18": 512,
    "mobilenet_v3_small": 1024,
    "squeezenet1_1": 512,
    "shufflenet_v2_x0_5": 1024,
    "regnet_y_400mf": 440,
    "efficientnet_b0": 1280,
    "densenet121": 1024,
    "googlenet": 1024,
    "mnasnet0_5": 1280,
    "convnext_tiny": 768,
    "swin_t": 768,
    "maxvit_t": 512,
    "vit_b_32": 768,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architectures_equal_torchvision(arch: str, tmp_path: Path) -> None:
    model = seeded_model(arch)
    encoder = load_encoder(spec_of(arch, ARCHITECTURES[arch], save(model, tmp_path)), device="cpu", precision="fp32")
    images = photos(2)
    expected = reference(model, models.get_model_weights(arch).DEFAULT, images)
    vectors = vectors_of(encoder, images)
    np.testing.assert_allclose(vectors, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3 * np.abs(vectors).max()


def test_every_classification_model_can_be_built_and_stripped() -> None:
    """Its last layer is the last linear or convolution, which the generic stripping relies on."""
    for arch in models.list_models(module=models):
        if arch.startswith("regnet"):
            continue  # cannot be built without memory; one of them is in the list above
        builder = {"aux_logits": False, "init_weights": False} if arch in {"googlenet", "inception_v3"} else {}
        with torch.device("meta"):
            model = models.get_model(arch, weights=None, **builder)
        last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        assert 1000 in {getattr(last, "out_features", 0), getattr(last, "out_channels", 0)}, arch


def test_the_recipe_is_that_of_the_weights(tmp_path: Path) -> None:
    source = save(seeded_model("resnet18"), tmp_path)
    encoder = load_encoder(spec_of("resnet18", 512, source), device="cpu", precision="fp32")
    assert encoder.decode_options == {"resize": 256, "interpolation": "bilinear", "crop": 224}
    options = load_encoder(load_catalog()["mobilenet_v2"], device="cpu").decode_options
    assert options == {"resize": 256, "interpolation": "bilinear", "crop": 224}


def test_hub_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model, weights = seeded_model("resnet18"), models.ResNet18_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    encoder = load_encoder(spec_of("resnet18", 512, weights="IMAGENET1K_V1"), device="cpu", precision="fp32")
    images = photos(2)
    expected = reference(model, weights, images)
    np.testing.assert_allclose(vectors_of(encoder, images), expected, atol=1e-4 * max(1.0, float(expected.max())))


@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError('invalid hash value (expected "f37072fd")')])
def test_hub_weights_that_cannot_be_had(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_url: str, _path: str, hash_prefix: str, progress: bool) -> None:
        assert hash_prefix == "f37072fd"
        raise failure

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    error = error_of(spec_of("resnet18", 512, weights="IMAGENET1K_V1"))
    assert error.error_code == "encoder_unavailable"
    assert "resnet18-f37072fd.pth" in error.message


def test_entries_that_do_not_fit(tmp_path: Path) -> None:
    source = save(seeded_model("resnet18"), tmp_path)
    wrong = [
        spec_of("resnet18", 513, source),
        spec_of("resnet34", 512, source),
        spec_of("resnet19", 512, source),
        spec_of("fasterrcnn_resnet50_fpn", 512, source),
        spec_of("resnet18", 512, source, weights="IMAGENET1K_V9"),
        spec_of("resnet18", 512, source).model_copy(update={"options": {}}),
        spec_of("resnet18", 512, source).model_copy(update={"options": {"arch": "resnet18", "colour": 1}}),
    ]
    for spec in wrong:
        assert error_of(spec).error_code == "encoder_invalid"
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert error_of(spec_of("resnet18", 512, source)).error_code == "encoder_invalid"
    assert error_of(spec_of("resnet18", 512, str(tmp_path / "absent"))).error_code == "encoder_unavailable"


def test_pickles_from_users_are_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Bomb()))
    assert error_of(spec_of("resnet18", 512, str(tmp_path / "weights.pth"))).error_code == "encoder_invalid"
    assert not (tmp_path / "exploded").exists()
