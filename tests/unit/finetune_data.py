"""Small datasets whose answers are known, and an outside that can stop a run and keep its checkpoints."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.finetune.data import Dataset
from shared.fine_tuning import FineTuneRequest
from shared.queues import Modality


def dataset(
    vectors: dict[Modality, NDArray[Any]],
    labels: list[list[str]] | None = None,
    targets: NDArray[Any] | None = None,
    splits: list[str | None] | None = None,
    present: dict[Modality, NDArray[np.bool_]] | None = None,
    count: int = 0,
) -> Dataset:
    """A dataset of items `item-0000`…; `count` of them if there are no vectors."""
    count = len(next(iter(vectors.values()))) if vectors else count
    everywhere = {m: np.ones(count, np.bool_) for m in vectors}
    return Dataset(
        ids=[f"item-{i:04}" for i in range(count)],
        vectors={m: np.asarray(rows, np.float32) for m, rows in vectors.items()},
        present=everywhere if present is None else present,
        labels=[[]] * count if labels is None else labels,
        targets=np.full(count, np.nan) if targets is None else np.asarray(targets, np.float64),
        splits=[None] * count if splits is None else splits,
    )


def blobs(count: int = 240, classes: int = 3, noise: float = 1.0, missing: float = 0.0, seed: int = 0) -> Dataset:
    """Each class a cloud in text and image; sound is noise. `missing`: share of items that lack a modality."""
    rng = np.random.default_rng(seed)
    which = rng.integers(classes, size=count)
    vectors = {
        Modality.TEXT: rng.normal(size=(classes, 6))[which] + noise * rng.normal(size=(count, 6)),
        Modality.IMAGE: rng.normal(size=(classes, 8))[which] + noise * rng.normal(size=(count, 8)),
        Modality.AUDIO: rng.normal(size=(count, 4)),
    }
    present = {m: rng.random(count) >= missing for m in vectors}
    present[Modality.AUDIO] |= ~present[Modality.TEXT] & ~present[Modality.IMAGE]
    return dataset(vectors, [[f"class-{c}"] for c in which], present=present)


def request(method: str = "classifier", preset: str = "fast", **options: Any) -> FineTuneRequest:
    """What a job asks for."""
    return FineTuneRequest.model_validate(
        {"type": "fine_tune", "features": "job-x", "method": method, "preset": preset, **options}
    )


class Stopped(Exception):
    """The run was asked to stop."""


class Outside:
    """A `Progress` that keeps checkpoints and events, and stops the run at the n-th check."""

    def __init__(self, stop_at: int | None = None, saved: dict[str, bytes] | None = None):
        self.saved = {} if saved is None else saved
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.checks, self._stop_at = 0, stop_at

    def check(self) -> None:
        self.checks += 1
        if self.checks == self._stop_at:
            raise Stopped

    def report(self, kind: str, **facts: Any) -> None:
        self.events.append((kind, facts))

    def is_due(self) -> bool:
        return True

    def save(self, name: str, state: bytes) -> None:
        self.saved[name] = state

    def restore(self, name: str) -> bytes | None:
        return self.saved.get(name)


def without_times(value: Any) -> Any:
    """JSON without what the clock measured."""
    clocks = {"seconds", "training_seconds", "prediction_microseconds_per_item"}
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in clocks}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


Make = Callable[..., Dataset]
