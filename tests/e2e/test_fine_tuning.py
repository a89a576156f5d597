"""Fine-tuning end to end: the sample's features to a model, predictions with it, and what a killed worker changes."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from deploy.local.stack import Stack
from services.client.client import Client
from shared.schemas import Job, JobStatus, ModelEntry
from shared.testing.jobs import wait_for

SAMPLE = "deploy/sample/emoji.tar"


@pytest.fixture(scope="module")
def features(client: Client, root: Path) -> Job:
    """The sample's feature set."""
    return client.jobs.wait(client.features(root / SAMPLE).id)


def train(client: Client, features: Job, **options: Any) -> ModelEntry:
    """A model that was trained on the feature set."""
    job = client.jobs.create(type="fine_tune", features=features.id, **options)
    job = client.jobs.wait(job.id)
    assert job.status == JobStatus.SUCCEEDED, job.error
    [id] = job.models
    return client.models.get(id)


@pytest.fixture(scope="module")
def model(client: Client, features: Job) -> ModelEntry:
    """A classifier, quickly made."""
    return train(client, features, preset="fast", training={"seed": 3})


def results(client: Client, job: Job, folder: Path) -> pd.DataFrame:
    """A job's results, by item."""
    path = folder / f"{job.id}.parquet"
    client.jobs.results(job.id, path)
    return pd.read_parquet(path).set_index("id")


def test_fused_beats_every_modality(model: ModelEntry) -> None:
    """On test items, scored on all of them; what every run reports is there."""
    assert model.fine_tuned is not None
    metrics = model.fine_tuned.metrics
    table = metrics["alone"]
    assert set(table) == {"fused", "text", "image", "audio"}
    assert table["fused"]["score"] > max(table[m]["score"] for m in ("text", "image", "audio"))
    shares = metrics["contributions"]
    assert sum(shares["by_modality"].values()) == pytest.approx(shares["all"] - shares["none"])
    assert {"model.safetensors", "config.json", "metrics.json", "README.md"} <= set(model.files)


def test_predictions_are_what_was_measured(client: Client, features: Job, model: ModelEntry, tmp_path: Path) -> None:
    """A predict job on the same features, scored by hand on the test items, comes to the model's own figure."""
    job = client.jobs.wait(client.jobs.create(type="predict", features=features.id, model=model.id).id)
    assert (job.status, job.items.succeeded) == (JobStatus.SUCCEEDED, features.items.succeeded)
    frame = results(client, job, tmp_path)
    test = frame[frame["split"] == "test"]
    accuracy = np.mean([p[0] == t[0] for p, t in zip(test["prediction"], test["label"], strict=True)])
    assert model.fine_tuned is not None
    assert accuracy == pytest.approx(model.fine_tuned.metrics["test"]["accuracy"])
    probabilities = np.stack(list(frame["probabilities"]))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert {"contribution_text", "contribution_image", "contribution_audio"} <= set(frame.columns)


def test_raw_items_are_predicted_as_their_features(
    client: Client, features: Job, model: ModelEntry, root: Path, tmp_path: Path
) -> None:
    """The sample as a manifest, through extraction and fusion, gives what its feature set gives."""
    from_features = client.jobs.wait(client.jobs.create(type="predict", features=features.id, model=model.id).id)
    file = client.files.upload(root / SAMPLE)
    raw = client.jobs.wait(client.jobs.create(type="predict", input={"file_id": file.id}, model=model.id).id)
    assert raw.status == JobStatus.SUCCEEDED
    one, other = results(client, from_features, tmp_path), results(client, raw, tmp_path)
    assert one.index.tolist() == other.index.tolist()
    np.testing.assert_allclose(np.stack(list(one["probabilities"])), np.stack(list(other["probabilities"])), atol=1e-5)


def test_a_learned_fusion_makes_features(client: Client, model: ModelEntry, tmp_path: Path) -> None:
    """A features job that names the model has the model's fused vectors, with the model's encoders."""
    items = [{"id": "a", "text": "a red bus"}, {"id": "b", "text": "an old tree"}]
    job = client.jobs.wait(client.jobs.create(items=items, fusion={"model": model.id}).id)
    assert job.status == JobStatus.SUCCEEDED
    fused = np.stack(list(results(client, job, tmp_path)["fused"]))
    assert fused.shape == (2, model.dimension)
    assert np.isfinite(fused).all()
    assert not np.array_equal(fused[0], fused[1])


def test_a_killed_worker_changes_nothing(client: Client, features: Job, stack: Stack) -> None:
    """Killed in the middle of epochs, twice: it goes on from the last one, to the weights of an undisturbed run."""
    options: dict[str, Any] = {"preset": "good", "training": {"seed": 5, "epochs": 40}}
    undisturbed = train(client, features, **options)
    job = client.jobs.create(type="fine_tune", features=features.id, **options)
    for count in (1, 3):
        wait_for(lambda wanted=count: len(_epochs(client, job.id)) >= wanted, seconds=120, what="epochs")  # type: ignore[misc]
        assert client.jobs.get(job.id).status == JobStatus.RUNNING
        os.kill(stack.services["finetune-1"].pid, signal.SIGKILL)
    job = client.jobs.wait(job.id, timeout=240)
    assert job.status == JobStatus.SUCCEEDED
    [id] = job.models
    made = client.models.get(id)
    assert made.revision == undisturbed.revision, "the sha256 of the weights"
    epochs = _epochs(client, job.id)
    assert len(set(epochs)) == len(epochs), "an epoch that was over was not gone through again"
    assert any(epoch > 1 for _, epoch in epochs)


def _epochs(client: Client, job_id: str) -> list[tuple[str, int]]:
    """The epochs that were told of: of which network, and its number."""
    answer = httpx.get(
        f"{client.address.url}/v1/jobs/{job_id}/events", params={"limit": 1000}, headers={"Accept": "application/json"}
    )
    told = [event["data"] for event in answer.json()["data"] if event["type"] == "training.epoch"]
    return [(facts["model"], facts["epoch"]) for facts in told]
