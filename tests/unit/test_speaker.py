"""The speaker encoder equals Resemblyzer's own VoiceEncoder."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.catalog import load_catalog
from shared.errors import JobError
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.loading import load_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(load_catalog()["speaker"], device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def resemblyzer() -> Iterator[Any]:
    """The package itself, with stand-ins for what it imports to cut pauses, which is not installed and not compared."""
    stand_ins = {name: types.ModuleType(name) for name in ("webrtcvad", "scipy.ndimage.morphology")}
    stand_ins["scipy.ndimage.morphology"].binary_dilation = None  # type: ignore[attr-defined]  # a bare module
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        import resemblyzer

        yield resemblyzer
    for name in [name for name in sys.modules if name.startswith("resemblyzer")]:
        del sys.modules[name]


def speech(samples: int, amplitude: float) -> NDArray[np.float32]:
    noise = np.random.default_rng(samples).normal(0, amplitude, samples)
    return (noise * np.sin(np.arange(samples) / 800)).astype(np.float32)


CLIPS = [
    speech(samples, amplitude)
    for samples, amplitude in [
        *((3, 1.0), (100, 1.0), (16_000, 0.1), (25_599, 1.0), (25_600, 0.001), (40_000, 0.05)),
        *((48_000, 0.3), (57_000, 0.0001), (160_001, 0.2)),
    ]
]


def test_equals_resemblyzer_alone_and_in_a_batch(encoder: Encoder, resemblyzer: Any) -> None:
    reference = resemblyzer.VoiceEncoder("cpu", verbose=False)
    expected = np.stack(
        [reference.embed_utterance(resemblyzer.normalize_volume(clip, -30, increase_only=True)) for clip in CLIPS]
    )
    prepared = [encoder.preprocess(clip) for clip in CLIPS]
    together = encoder.encode(prepared)
    assert together.dtype == np.float32
    assert encoder.dimension == together.shape[1] == 256
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([encoder.encode([item]) for item in prepared]), expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert encoder.decode_options == {"sample_rate": 16_000}


def test_silence_has_a_finite_vector(encoder: Encoder) -> None:
    assert np.isfinite(encoder.encode([encoder.preprocess(np.zeros(16_000, np.float32))])).all()


def test_cost_grows_with_length(encoder: Encoder) -> None:
    short, long = (encoder.preprocess(speech(seconds * 16_000, 0.1)) for seconds in (1, 60))
    assert encoder.cost(long) > 20 * encoder.cost(short)


def test_weights_that_are_not_on_the_list_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"not the weights")
    spec = load_catalog()["speaker"].model_copy(update={"source": str(tmp_path / "weights.pt")})
    with pytest.raises(JobError) as caught:
        load_encoder(spec, device="cpu")
    assert caught.value.error_code == "encoder_invalid"
