"""The digits dataset: the same bytes for a seed, and each modality tells something, none enough."""

import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.audio.preprocess import decode
from tests.learn.digits import WORDS, Noise, make_digits

Items = list[dict[str, Any]]


def read(archive: bytes) -> tuple[Items, dict[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        content = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]  # files only
    return [json.loads(line) for line in content["manifest.jsonl"].splitlines()], content


@pytest.fixture(scope="module")
def digits() -> tuple[Items, dict[str, bytes]]:
    return read(make_digits(items_per_digit=40))


def test_a_seed_gives_the_same_bytes() -> None:
    """And another seed others; nothing of one modality depends on how noisy the others are."""
    assert make_digits(3, items_per_digit=4) == make_digits(3, items_per_digit=4)
    items, media = read(make_digits(3, items_per_digit=4))
    others, _ = read(make_digits(4, items_per_digit=4))
    assert [item["text"] for item in items] != [item["text"] for item in others]
    louder, changed = read(make_digits(3, Noise(decibels=20), items_per_digit=4))
    assert louder == items
    assert {name for name in media if media[name] != changed[name]} == {item["audio"] for item in items}


def test_every_digit_has_as_many_items_in_every_part(digits: tuple[Items, dict[str, bytes]]) -> None:
    """Each with its three modalities; ids and order say nothing of the label."""
    items, media = digits
    for split, count in (("train", 28), ("validation", 6), ("test", 6)):
        labels = [item["label"] for item in items if item["split"] == split]
        assert {word: labels.count(word) for word in WORDS} == dict.fromkeys(WORDS, count)
    assert set(media) - {"manifest.jsonl"} == {item[m] for item in items for m in ("image", "audio")}
    assert len({item["label"] for item in items[:30]}) == len(WORDS)


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_each_modality_tells_something_and_none_enough(modality: str, digits: tuple[Items, dict[str, bytes]]) -> None:
    """Plain features and logistic regression: far from chance (0.1), far from sure."""
    items, media = digits
    labels = np.array([item["label"] for item in items])
    train = np.array([item["split"] == "train" for item in items])
    rows = plain_features(modality, items, media)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(rows[train], labels[train])
    assert 0.3 < model.score(rows[~train], labels[~train]) < 0.9


def plain_features(modality: str, items: Items, media: dict[str, bytes]) -> np.ndarray:
    """Pixels; letters in groups; statistics of sound."""
    if modality == "text":
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), min_df=2)
        return letters.fit_transform([item["text"] for item in items]).toarray()
    if modality == "image":
        pictures = [Image.open(io.BytesIO(media[item["image"]])).resize((8, 8)) for item in items]
        return np.stack([np.asarray(picture, np.float64).ravel() for picture in pictures])
    options = {"sample_rate": 16_000, "extractor": "mfcc_stats"}
    return np.stack([decode(media[item["audio"]], options) for item in items])
