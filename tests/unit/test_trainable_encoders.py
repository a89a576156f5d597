"""Encoders with gradients: what is trained is what is saved, and what is saved is what is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from services.audio.preprocess import decode as decode_sound
from shared.catalog import TRAINING, EncoderSpec, load_catalog
from shared.errors import JobError
from shared.fine_tuning import TrainEncoder
from shared.ml.encoders.base import WEIGHTS, TrainableEncoder
from shared.ml.encoders.loading import load_encoder, load_trainable
from shared.ml.lora import Adapter
from shared.ml.torchvision_shim import make_torchvision_importable
from shared.testing.tiny import sounds, tiny_bert, tiny_cnn, word_order

make_torchvision_importable()
import transformers  # noqa: E402  # its image processors import torchvision
from torchvision import models  # noqa: E402

transformers.utils.logging.disable_progress_bar()

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
Built = tuple[EncoderSpec, list[Any]]


def bert(folder: Path) -> Built:
    return tiny_bert(folder), [text for text, _ in word_order(4, 0)]


def clip_text(folder: Path) -> Built:
    tiny_bert(folder)  # for its tokenizer
    text = {**SIZES, "vocab_size": 99, "max_position_embeddings": 24, "eos_token_id": 3}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    spec = EncoderSpec(
        id="clip", modality="text", dimension=16, loader="transformers", source=str(folder), options={"pooling": "clip"}
    )
    return spec, [text for text, _ in word_order(4, 0)]


def vit(folder: Path) -> Built:
    transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    spec = EncoderSpec(id="vit", modality="image", dimension=32, loader="transformers", source=str(folder))
    return spec, pictures(48)


def shufflenet(folder: Path) -> Built:
    model = models.get_model("shufflenet_v2_x0_5")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.from_numpy(np.stack(pictures(224))).permute(0, 3, 1, 2) / 64 - 2)  # learns their statistics
    save_file(model.state_dict(), folder / "weights.safetensors")
    spec = EncoderSpec(
        id="shufflenet", modality="image", dimension=1024, loader="torchvision", source=str(folder),
        options={"arch": "shufflenet_v2_x0_5"},
    )  # fmt: skip
    return spec, pictures(224)


def wav2vec2(folder: Path) -> Built:
    convolutions = {"conv_dim": (16, 16), "conv_stride": (10, 8), "conv_kernel": (10, 8)}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(**SIZES, **convolutions, **positions, mask_time_length=1000)
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    spec = EncoderSpec(id="wav2vec2", modality="audio", dimension=32, loader="transformers", source=str(folder))
    return spec, [decode_sound(data, {"sample_rate": 16_000}) for data, _ in sounds(4, 0)]


def whisper(folder: Path) -> Built:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, max_source_positions=200, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=4).save_pretrained(folder)
    spec = EncoderSpec(id="whisper", modality="audio", dimension=32, loader="transformers", source=str(folder))
    return spec, [decode_sound(data, {"sample_rate": 16_000}) for data, _ in sounds(4, 0)]


def cnn(folder: Path) -> Built:
    spec = tiny_cnn()
    torch.manual_seed(0)
    load_trainable(spec, device="cpu").save(folder)
    return spec, [decode_sound(data, {"sample_rate": 16_000, "extractor": "log_mel"}) for data, _ in sounds(4, 0)]


def pictures(size: int) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8))


@pytest.fixture(params=[bert, clip_text, vit, shufflenet, wav2vec2, whisper, cnn], ids=lambda build: build.__name__)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TrainableEncoder, list[Any], Path]:
    """A small encoder as it is trained, items that it can take, and a folder for what it becomes."""
    (tmp_path / "source").mkdir()
    (tmp_path / "saved").mkdir()
    torch.manual_seed(0)
    spec, media = request.param(tmp_path / "source")
    torch.manual_seed(0)
    source = tmp_path / "source" if spec.loader == "log_mel_cnn" else None
    encoder = load_trainable(spec, device="cpu", model_path=source)
    return encoder, [encoder.preprocess(one) for one in media], tmp_path / "saved"


def step(encoder: TrainableEncoder, batch: list[Any]) -> None:
    """Makes a few components of the vectors larger."""
    optimizer = torch.optim.AdamW([p for p in encoder.module.parameters() if p.requires_grad], lr=1e-3)
    encoder.module.train()
    for _ in range(3):
        optimizer.zero_grad()
        (-encoder.vectors(batch)[:, :5].sum(1).mean()).backward()
        optimizer.step()
    encoder.module.eval()


def reloaded(encoder: TrainableEncoder, folder: Path) -> Any:
    """What a pool loads of what was saved."""
    encoder.save(folder)
    return load_encoder(encoder.spec, device="cpu", precision="fp32", model_path=folder)


def test_before_training_it_is_the_plain_encoder(built: tuple[TrainableEncoder, list[Any], Path]) -> None:
    """The same vectors, up to the order of sums; their items cost more than nothing."""
    encoder, batch, folder = built
    plain = reloaded(encoder, folder)
    np.testing.assert_allclose(encoder.encode(batch), plain.encode(batch), atol=1e-5)
    assert all(0 < encoder.cost(item) <= encoder.at_once for item in batch)


def test_what_was_trained_is_what_is_loaded(built: tuple[TrainableEncoder, list[Any], Path]) -> None:
    """Vectors that training has changed, and a fingerprint of their own."""
    encoder, batch, folder = built
    before = encoder.encode(batch)
    step(encoder, batch)
    after = encoder.encode(batch)
    assert np.abs(after - before).max() > 1e-3
    plain = reloaded(encoder, folder)
    np.testing.assert_allclose(plain.encode(batch), after, rtol=1e-4, atol=1e-5)
    assert plain.fingerprint != encoder.fingerprint
    assert (folder / WEIGHTS).is_file()


def test_an_adapter_merges_into_the_same_vectors(built: tuple[TrainableEncoder, list[Any], Path]) -> None:
    """Before it is trained it changes nothing; merged, it says what it said before, and so does what was saved."""
    encoder, batch, folder = built
    if TrainEncoder.LORA not in TRAINING[encoder.spec.loader]:
        pytest.skip("only for transformers")
    plain = encoder.encode(batch)
    adapter = Adapter(encoder.module, rank=4)
    np.testing.assert_allclose(encoder.encode(batch), plain, atol=1e-6)
    trained = sum(p.numel() for p in encoder.module.parameters() if p.requires_grad)
    assert trained < 0.5 * sum(p.numel() for p in encoder.module.parameters())
    step(encoder, batch)
    tuned = encoder.encode(batch)
    assert np.abs(tuned - plain).max() > 1e-4
    adapter.merge()
    np.testing.assert_allclose(encoder.encode(batch), tuned, atol=1e-5)
    np.testing.assert_allclose(reloaded(encoder, folder).encode(batch), tuned, atol=1e-5)


def test_statistics_of_a_pretrained_network_stay_as_they_are(tmp_path: Path) -> None:
    """Those of a few images at a time would be noise."""
    spec, media = shufflenet(tmp_path)
    encoder = load_trainable(spec, device="cpu")
    before = {name: buffer.clone() for name, buffer in encoder.module.named_buffers()}
    step(encoder, media)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.module.named_buffers())


def test_a_network_without_weights_encodes_nothing() -> None:
    """It is trained first."""
    with pytest.raises(JobError, match="trained by a job") as caught:
        load_encoder(load_catalog()["log_mel_cnn"], device="cpu")
    assert caught.value.error_code == "encoder_unavailable"
