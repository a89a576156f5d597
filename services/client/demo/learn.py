"""A model trained on the demo's features, and what it says of items that it has never seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from services.client.client import Client
from services.client.demo.jobs import succeeded
from shared.fine_tuning import Preset
from shared.queues import Modality
from shared.schemas import FineTuned, Job


@dataclass(frozen=True)
class Prediction:
    """What a model says of an item: the class, how probable it is, and how much each modality moved that."""

    label: str
    probability: float
    contributions: dict[str, float]


@dataclass(frozen=True)
class Learned:
    """What is known of a trained model, the folder with its files, and its predictions by item id, from `written`."""

    id: str
    model: FineTuned
    folder: Path
    predictions: dict[str, Prediction]
    written: Path

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """On test items, by modality alone and `fused`: `score`, and its 95 % interval from `low` to `high`."""
        scores: dict[str, dict[str, Any]] = self.model.metrics["alone"]
        return scores

    @property
    def card(self) -> list[str]:
        """The paragraphs of the model card's head, without its title."""
        head, _, _ = (self.folder / "README.md").read_text().partition("\n## ")
        return [part.strip().replace("**", "") for part in head.split("\n\n")[1:] if part.strip()]


def learn(client: Client, features: Job, output_dir: Path, console: Console) -> Learned:
    """Trains classifiers on the items of a feature set whose split is `train`, keeps the best, and predicts all items.

    Raises ClientError (`demo_failed`).
    """
    trained = succeeded(client, client.fine_tune(features.id, preset=Preset.GOOD), console)
    [id] = trained.models
    model = client.models.get(id).fine_tuned
    assert model is not None
    folder = client.models.download(id, output_dir / id)
    said = succeeded(client, client.predict(features.id, model=id), console)
    written = client.jobs.results(said.id, output_dir / "predictions.parquet")
    return Learned(id, model, folder, read_predictions(written), written)


def read_predictions(path: Path) -> dict[str, Prediction]:
    """The predictions of a classifier in a Parquet file, as `trivium results` writes it."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return {row["id"]: _prediction(row) for row in rows}


def _prediction(row: dict[str, Any]) -> Prediction:
    moved = {m.value: row[name] for m in Modality if (name := f"contribution_{m.value}") in row}
    return Prediction(row["prediction"][0], row["probability"], moved)
