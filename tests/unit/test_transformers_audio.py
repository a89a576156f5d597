"""Hugging Face audio encoders equal transformers itself, on small models with random weights, padded or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.catalog import EncoderSpec
from shared.errors import JobError
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.loading import load_encoder
from shared.ml.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
import transformers  # noqa: E402  # CLAP imports torchvision

transformers.utils.logging.disable_progress_bar()

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers says so of AST's own filterbank
    pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning"),
]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 99, "projection_dim": 16}

Builder = Callable[[], tuple[Any, Any]]
Saved = tuple[str, Any, Any]


def waveform(name: str, norm: str, **options: Any) -> Builder:
    """wav2vec 2.0 or one of its kin; `norm` is how its convolutions normalise, which decides whether padding harms."""

    def build() -> tuple[Any, Any]:
        config = getattr(transformers, f"{name}Config")(**SIZES, **CONVOLUTIONS, feat_extract_norm=norm, **options)
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
        return getattr(transformers, f"{name}Model")(config), extractor

    return build


def whisper() -> tuple[Any, Any]:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=200,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(chunk_length=4)


def ast() -> tuple[Any, Any]:
    config = transformers.ASTConfig(**SIZES, max_length=128)
    return transformers.ASTModel(config), transformers.ASTFeatureExtractor(max_length=128)


def clap() -> tuple[Any, Any]:
    audio = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "window_size": 4,
        "spec_size": 64,
        "num_mel_bins": 16,
        "projection_dim": 16,
    }
    config = transformers.ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=16)
    extractor = transformers.ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc")
    return transformers.ClapModel(config), extractor


WAV2VEC2 = waveform("Wav2Vec2", "group")
WAV2VEC2_LARGE = waveform("Wav2Vec2", "layer", do_stable_layer_norm=True)


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    """The folder, model and feature extractor of the builder that parametrises the test."""
    torch.manual_seed(0)
    model, extractor = request.param()
    model.eval().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    return str(tmp_path), model, extractor


def clip_of(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


CLIPS = [clip_of(samples) for samples in (16_000, 4_000, 19_999, 8_000, 16_000, 1_200, 401)]


def encoder_of(source: str, dimension: int, precision: Any = "fp32", **options: Any) -> Encoder:
    spec = EncoderSpec(
        id="tiny", modality="audio", dimension=dimension, loader="transformers", source=source, options=options
    )
    return load_encoder(spec, device="cpu", precision=precision)


def error_of(source: str, dimension: int, **options: Any) -> str:
    with pytest.raises(JobError) as caught:
        encoder_of(source, dimension, **options)
    return caught.value.error_code


def reference(model: Any, extractor: Any, pooling: str, clips: list[NDArray[np.float32]]) -> Vectors:
    """Each clip alone through the library."""
    rows = []
    for clip in clips:
        inputs = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs.pop("attention_mask", None)
        with torch.inference_mode():
            if pooling == "clip":
                row = model.get_audio_features(**inputs).pooler_output
            elif pooling == "pooler":
                row = model(**inputs).pooler_output
            else:
                hidden = (model.encoder if hasattr(model, "decoder") else model)(**inputs).last_hidden_state
                # Whisper pads to its window; a position of its encoder is 320 samples.
                sound = -(-len(clip) // 320) if hasattr(model, "decoder") else hidden.shape[1]
                row = hidden[:, 0] if pooling == "cls" else hidden[:, :sound].mean(1)
        rows.append(row.numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("saved", "pooling", "dimension"),
    [
        (WAV2VEC2, "mean", 32),
        (WAV2VEC2_LARGE, "mean", 32),
        (waveform("Wav2Vec2", "layer"), "cls", 32),
        (waveform("Hubert", "group"), "mean", 32),
        (waveform("Hubert", "layer", do_stable_layer_norm=True), "mean", 32),
        (waveform("WavLM", "group"), "mean", 32),
        (waveform("WavLM", "layer", do_stable_layer_norm=True), "mean", 32),
        (waveform("UniSpeech", "layer"), "mean", 32),
        (waveform("UniSpeechSat", "layer"), "mean", 32),
        (whisper, "mean", 32),
        (clap, "clip", 16),
    ],
    indirect=["saved"],
)
def test_equals_transformers_alone_and_in_a_batch(saved: Saved, pooling: str, dimension: int) -> None:
    source, model, extractor = saved
    encoder = encoder_of(source, dimension, pooling=pooling)
    expected = reference(model.eval(), extractor, pooling, CLIPS)
    prepared = [encoder.preprocess(clip) for clip in CLIPS]
    vectors = encoder.encode(prepared)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(CLIPS), encoder.dimension) == (len(CLIPS), dimension)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([encoder.encode([item]) for item in prepared]), expected, atol=1e-4)
    assert encoder.decode_options == {"sample_rate": extractor.sampling_rate}


@pytest.mark.parametrize("saved", [ast], indirect=True)
@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_ast_equals_transformers(saved: Saved, pooling: str) -> None:
    source, model, extractor = saved
    clips = [clip for clip in CLIPS if len(clip) <= 20_480]
    encoder = encoder_of(source, 32, pooling=pooling)
    vectors = encoder.encode([encoder.preprocess(clip) for clip in clips])
    np.testing.assert_allclose(vectors, reference(model, extractor, pooling, clips), atol=1e-4)


@pytest.mark.parametrize(
    ("saved", "pooling", "window"),
    [(WAV2VEC2, "mean", 1.0), (WAV2VEC2_LARGE, "mean", 1.0), (whisper, "mean", None), (ast, "pooler", None)],
    indirect=["saved"],
)
def test_long_sound_is_the_mean_of_equal_windows(saved: Saved, pooling: str, window: float | None) -> None:
    source, model, extractor = saved
    encoder = encoder_of(source, 32, pooling=pooling, window_seconds=window)
    seconds = window or {"WhisperModel": 4.0, "ASTModel": 1.28}[type(model).__name__]
    clips = [clip_of(samples) for samples in (90_001, 500, int(seconds * 16_000), int(seconds * 16_000) + 1)]
    expected = []
    for clip in clips:
        windows = np.array_split(clip, int(np.ceil(len(clip) / (seconds * 16_000))))
        expected.append(reference(model, extractor, pooling, windows).mean(0))
    vectors = encoder.encode([encoder.preprocess(clip) for clip in clips])
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("saved", [WAV2VEC2, WAV2VEC2_LARGE, whisper, ast, clap], indirect=True)
def test_very_short_and_silent_sound_has_a_finite_vector(saved: Saved) -> None:
    source, model, _ = saved
    pooling, dimension = ("clip", 16) if isinstance(model, transformers.ClapModel) else ("mean", 32)
    encoder = encoder_of(source, dimension, pooling=pooling)
    prepared = [encoder.preprocess(clip) for clip in (np.zeros(1, np.float32), np.zeros(9000, np.float32), clip_of(3))]
    assert np.isfinite(encoder.encode(prepared)).all()


@pytest.mark.parametrize("saved", [WAV2VEC2_LARGE], indirect=True)
def test_costs_normalize_and_fingerprints(saved: Saved) -> None:
    encoder, unit = encoder_of(saved[0], 32), encoder_of(saved[0], 32, normalize=True)
    assert [encoder.cost(encoder.preprocess(clip)) for clip in CLIPS] == [len(clip) for clip in CLIPS]
    vectors = unit.encode([unit.preprocess(clip) for clip in CLIPS])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    half = encoder_of(saved[0], 32, "bf16")
    assert len({encoder.fingerprint, unit.fingerprint, half.fingerprint}) == 3
    assert encoder_of(saved[0], 32).fingerprint == encoder.fingerprint
    one, other = (e.encode([e.preprocess(clip) for clip in CLIPS]) for e in (encoder, half))
    assert ((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min() > 0.999


@pytest.mark.parametrize("saved", [whisper], indirect=True)
def test_padding_by_the_feature_extractor_is_part_of_the_cost(saved: Saved) -> None:
    encoder = encoder_of(saved[0], 32)
    assert encoder.cost(encoder.preprocess(clip_of(100))) == 4 * 16_000
    assert encoder.cost(encoder.preprocess(clip_of(5 * 16_000))) == 8 * 16_000


@pytest.mark.parametrize("saved", [whisper], indirect=True)
def test_entries_that_do_not_fit(saved: Saved, tmp_path: Path) -> None:
    source = saved[0]
    assert error_of(source, 33) == "encoder_invalid"
    assert error_of(source, 32, pooling="clip") == "encoder_invalid"
    assert error_of(source, 32, pooling="pooler") == "encoder_invalid"
    assert error_of(source, 32, window_seconds=5.0) == "encoder_invalid"
    assert error_of(source, 32, pooling="median") == "encoder_invalid"
    (tmp_path / "preprocessor_config.json").unlink()
    assert error_of(source, 32) == "encoder_invalid"
