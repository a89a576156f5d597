"""Kinds of jobs that train and predict. All is seeded, on encoders without rounding: weights come out bit by bit."""

import json
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from tests.chaos.content import data_uri, picture, sentence

_ENCODERS = {"text": "hash-text", "image": "hash-image", "audio": None}
_CLASSES = ("a", "b", "c")
_EPOCHS = {"epochs": 6, "patience": 6, "hidden": 16}


def _fine_tune(random: np.random.Generator) -> dict[str, Any]:
    """A classifier from a manifest, one of whose pictures is broken."""
    lines = [json.dumps(item) for item in _items(random, 60, broken={7})]
    return {
        "filename": "labelled.jsonl",
        "content": "\n".join(lines).encode(),
        "options": {**_training(), "encoders": _ENCODERS, "shard_size": 16},
    }


def _fine_tune_too_many_bad(random: np.random.Generator) -> dict[str, Any]:
    """More items fail than `max_failed_fraction` allows: it ends before training."""
    items = [{**item, "text": "  "} if i % 3 == 0 else item for i, item in enumerate(_items(random, 30, images=False))]
    return {"items": items, "options": {**_training(), "encoders": {**_ENCODERS, "image": None}}}


def _fine_tune_cancelled(random: np.random.Generator) -> dict[str, Any]:
    """Cancelled at some moment of its life."""
    return {**_fine_tune(random), "tags": frozenset({"cancel"})}


def _fine_tune_on_features(random: np.random.Generator) -> dict[str, Any]:
    """A search for settings on a feature set: trials leave checkpoints of their own."""
    options = _training(search={"trials": 3}, training={"epochs": 4, "patience": 4, "seed": 1})
    return {"options": options, "given": frozenset({"features"})}


def _align_on_features(random: np.random.Generator) -> dict[str, Any]:
    """Projections into one space."""
    return {"options": _training(method="align", fusion=None), "given": frozenset({"features"})}


def _predict(random: np.random.Generator) -> dict[str, Any]:
    """Items through extraction, fusion and the model."""
    return {
        "items": _items(random, 24, broken={4}),
        "options": {"type": "predict", "shard_size": 8},
        "given": frozenset({"model"}),
    }


def _predict_on_features(random: np.random.Generator) -> dict[str, Any]:
    """A feature set through the model."""
    return {"options": {"type": "predict"}, "given": frozenset({"features", "model"})}


def _foundation_features(random: np.random.Generator) -> dict[str, Any]:
    return {"items": _items(random, 60), "options": {"encoders": _ENCODERS, "shard_size": 16}}


def _foundation_model(random: np.random.Generator) -> dict[str, Any]:
    return {"options": _training(), "given": frozenset({"features"})}


MAKERS: tuple[Callable[[np.random.Generator], dict[str, Any]], ...] = (
    _fine_tune, _fine_tune_too_many_bad, _fine_tune_cancelled, _fine_tune_on_features, _align_on_features, _predict,
    _predict_on_features,
)  # fmt: skip
FOUNDATION = {"features": _foundation_features, "model": _foundation_model}


def _training(**changed: Any) -> dict[str, Any]:
    options = {
        "type": "fine_tune",
        "method": "classifier",
        "preset": "fast",
        "fusion": {"method": "gated"},
        "training": _EPOCHS,
        **changed,
    }
    return {name: value for name, value in options.items() if value is not None}


def _items(
    random: np.random.Generator, count: int, *, images: bool = True, broken: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Labelled items with texts and, in two of three, pictures."""
    items: list[dict[str, Any]] = []
    for i in range(count):
        item: dict[str, Any] = {"id": f"item-{i}", "text": sentence(random), "label": _CLASSES[i % 3]}
        if images and i % 3:
            item["image"] = data_uri("image/png", b"\x89PNG broken" if i in broken else picture(random, 12))
        items.append(item)
    return items
