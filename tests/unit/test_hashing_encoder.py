"""The deterministic encoder: the same bytes everywhere."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalog import load_catalog
from shared.ml.encoders.batching import encode_all
from shared.ml.encoders.loading import load_encoder

#: Multiples of 1/32768; they must never change.
KNOWN = [
    [11675, -22983, -23860, 13664, -31818],
    [28675, -27430, 9109, -13159, 31642],
    [-21477, -18896, -2270, -25946, -10965],
    [24968, 24583, -22397, -1603, 3280],
]


@pytest.fixture(scope="module")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "encoders.json"
    entry = '{{"id": "hash-{0}", "modality": "{0}", "dimension": 5, "loader": "hashing"}}'
    path.write_text(f"[{', '.join(entry.format(m) for m in ('text', 'image', 'audio'))}]")
    return path


def _encode(catalog_file: Path, modality: str, media: list[object]) -> np.ndarray:
    encoder = load_encoder(load_catalog(catalog_file)[f"hash-{modality}"])
    return encode_all(encoder, [encoder.preprocess(one) for one in media])[0]


def test_known_vectors(catalog_file: Path) -> None:
    text = _encode(catalog_file, "text", ["héllo", "世界"])
    image = _encode(catalog_file, "image", [np.arange(12, dtype=np.uint8).reshape(2, 2, 3)])
    audio = _encode(catalog_file, "audio", [np.linspace(-1, 1, 9, dtype=np.float32)])
    assert (np.concatenate([text, image, audio]) * 32768).astype(int).tolist() == KNOWN


@given(st.lists(st.text(), min_size=1, unique=True))
def test_vectors_are_in_range_and_differ_with_the_content(texts: list[str]) -> None:
    encoder = load_encoder(load_catalog()["all-minilm-l6-v2"].model_copy(update={"loader": "hashing", "dimension": 8}))
    vectors = encoder.encode([encoder.preprocess(text) for text in texts])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 8)
    assert (np.abs(vectors) <= 1).all()
    assert len({row.tobytes() for row in vectors}) == len(texts)


def test_shape_and_layout_of_an_array(catalog_file: Path) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    same, other = np.asfortranarray(image), image.reshape(4, 2, 3)
    vectors = _encode(catalog_file, "image", [image, same, other])
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[0] != vectors[2]).any()


def test_it_needs_no_torch(catalog_file: Path) -> None:
    program = (
        "import sys\n"
        "from shared.catalog import load_catalog\n"
        "from shared.ml.encoders.batching import encode_all\n"
        "from shared.ml.encoders.loading import load_encoder\n"
        f"encoder = load_encoder(load_catalog({str(catalog_file)!r})['hash-text'])\n"
        "encode_all(encoder, [encoder.preprocess('x')])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
