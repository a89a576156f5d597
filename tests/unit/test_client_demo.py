"""What the demo says about a feature set, on small ones whose answers are known."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from services.client.demo import report
from services.client.demo.explore import FeatureSpace, neighbours, read_features
from services.client.demo.find import Hits, Search, draw_sheet
from services.client.demo.learn import Learned, Prediction, read_predictions
from services.client.demo.picture import draw
from services.client.demo.run import SAMPLE, Sample, find_problems, find_search_problems
from services.fusion.parquet import feature_schema, write_part
from shared.items import MediaLocation, PlannedItem
from shared.queues import Modality
from shared.schemas import FineTuned, Job

LABELS = ["Food & Drink", "Flags", "Symbols"]
COUNT = 90


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 items of three labels: texts tell them apart, sounds do not, pictures do where they are (two in three)."""
    rng = np.random.default_rng(0)
    which = np.arange(COUNT) % 3
    centres = np.eye(3, 8, dtype=np.float32)
    vectors = {
        "text": (centres[which] * 5 + rng.normal(0, 0.1, (COUNT, 8))).astype(np.float32),
        "image": (centres[which] + rng.normal(0, 0.1, (COUNT, 8))).astype(np.float32),
        "audio": rng.normal(0, 1, (COUNT, 4)).astype(np.float32),
    }
    vectors["fused"] = np.concatenate(list(vectors.values()), axis=1)
    all_of_them = np.ones(COUNT, np.bool_)
    present = {
        "text": all_of_them,
        "image": (np.arange(COUNT) // 3) % 3 > 0,
        "audio": all_of_them,
        "fused": all_of_them,
    }
    items = [
        PlannedItem(
            index=i,
            id=f"emoji-{i}",
            text="a",
            image=MediaLocation(ref=f"images/{i}.png") if present["image"][i] else None,
            audio=MediaLocation(ref=f"audio/{i}.ogg"),
            label=[LABELS[which[i]]],
            split="train" if i < 60 else "test",
            metadata={"name": f"name {i}", "codepoints": "U+1F355 U+FE0F"},
        )
        for i in range(COUNT)
    ]
    path = tmp_path_factory.mktemp("features") / "features.parquet"
    schema = feature_schema({name: rows.shape[1] for name, rows in vectors.items()}, {})
    path.write_bytes(write_part(schema, items, vectors, present))
    return path


@pytest.fixture(scope="module")
def space(features: Path) -> FeatureSpace:
    return read_features(features)


@pytest.fixture
def learned(space: FeatureSpace, tmp_path: Path) -> Learned:
    """A model that is right about everything."""
    row = {"score": 0.9, "low": 0.8, "high": 0.95, "items": 30, "items_there": 30}
    alone = {"fused": row, "image": {**row, "score": 0.7, "items_there": 21, "score_there": 0.8, "fused_there": 0.9}}
    (tmp_path / "README.md").write_text(
        "# Classifier\n\nSays one of 3 classes.\n\n**accuracy 0.900** on 30 test items.\n\n## Data\n\nMore.\n"
    )
    moved = {"text": 0.5, "image": -0.25, "audio": 0.0}
    return Learned(
        "model-1",
        FineTuned(encoders={}, fusions=["concat"], classes=LABELS, metrics={"main_score": "accuracy", "alone": alone}),
        tmp_path,
        {id: Prediction(str(label), 0.99, moved) for id, label in zip(space.ids, space.labels, strict=True)},
        tmp_path / "predictions.parquet",
    )


@pytest.fixture
def sample(space: FeatureSpace) -> Sample:
    items = [
        {"id": id, "text": "a", "audio": "b"} | ({"image": "c"} if has_image else {})
        for id, has_image in zip(space.ids, space.present["image"], strict=True)
    ]
    return Sample(items, {})


def job(succeeded: int = COUNT) -> Job:
    progress = {"shards_total": 1, "shards_done": 1, "shards_failed": 0, "items_cached": 0}
    stage = {**progress, "items_total": 90, "items_done": 90, "started_at": 10.0, "finished_at": 12.0}
    fields: dict[str, Any] = {
        "items": {"total": COUNT, "succeeded": succeeded, "partial": COUNT - succeeded, "failed": 0},
        "stages": dict.fromkeys(["text", "image", "audio", "fusion"], stage),
        "request": {"encoders": dict.fromkeys(Modality, "hashing"), "fusion": {"method": "concat"}},
    }
    return Job(id="job-1", type="features", status="succeeded", created_at=1, metadata={}, **fields)


def test_vectors_are_read_with_their_gaps(space: FeatureSpace) -> None:
    assert {name: rows.shape for name, rows in space.vectors.items()} == {
        "text": (90, 8), "image": (90, 8), "audio": (90, 4), "fused": (90, 20),
    }  # fmt: skip
    assert int(space.present["image"].sum()) == 60
    assert not space.vectors["image"][~space.present["image"]].any()
    assert np.linalg.norm(space.vectors["text"], axis=1) == pytest.approx(np.ones(COUNT), abs=1e-6)
    assert space.labels[1] == "Flags"


def test_neighbours_are_the_nearest_others(space: FeatureSpace) -> None:
    nearest = neighbours(space, "image", 4, 5)
    rows = space.vectors["image"].astype(np.float64)
    cosines = {i: float(rows[i] @ rows[4]) for i in range(COUNT) if i != 4 and space.present["image"][i]}
    expected = sorted(cosines, key=lambda i: -cosines[i])[:5]
    assert [index for index, _ in nearest] == expected
    assert [cosine for _, cosine in nearest] == pytest.approx([cosines[i] for i in expected], abs=1e-5)


def test_examples_are_the_first_complete_items_of_their_labels(space: FeatureSpace) -> None:
    assert space.examples(10) == [3, 4, 5], "the first three have no picture"
    assert space.examples(2, split="test") == [60, 61]
    assert space.majority == pytest.approx(1 / 3)


def test_predictions_are_read(tmp_path: Path) -> None:
    columns = {
        "id": ["a", "b"],
        "prediction": [["x"], ["y"]],
        "probability": [0.75, 0.5],
        "contribution_text": [0.25, 0.0],
    }
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    assert read_predictions(tmp_path / "predictions.parquet") == {
        "a": Prediction("x", 0.75, {"text": 0.25}),
        "b": Prediction("y", 0.5, {"text": 0.0}),
    }


def test_the_head_of_the_model_card(learned: Learned) -> None:
    assert learned.card == ["Says one of 3 classes.", "accuracy 0.900 on 30 test items."]


def test_the_picture(space: FeatureSpace, tmp_path: Path) -> None:
    red = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 255)).save(red, "PNG")
    draw(space, {}, tmp_path / "dots.png", "Dots")
    draw(space, {"emoji-5": red.getvalue()}, tmp_path / "badge.png", "One badge")
    dots, badge = (np.asarray(Image.open(tmp_path / name)) for name in ("dots.png", "badge.png"))
    assert dots.shape == badge.shape
    pure_red = (badge == (255, 0, 0)).all(axis=2).sum() - (dots == (255, 0, 0)).all(axis=2).sum()
    assert 300 < pure_red < 1000, "the picture of one item, inside its ring"


def test_the_tables(space: FeatureSpace, learned: Learned) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    tables = [report.features_table(job(), space), report.neighbours_table(space)]
    for part in [*tables, report.scores_table(learned), report.predictions_table(space, learned)]:
        console.print(part)
    text = console.export_text()
    assert "45" in text, "90 items in 2 s"
    assert "🍕\ufe0f name" in text
    assert text.count("fused") == 2 + 3 + 1, "in two tables, once for each label, and in what stands beside it"
    assert "0.800 … 0.950" in text
    said = [line.split() for line in text.splitlines() if "99%" in line]
    assert [line[-4:] for line in said] == [["99%", "+0.50", "-0.25", "+0.00"]] * 3


@pytest.fixture
def search(space: FeatureSpace) -> Search:
    """Ten pictures for each test item with a picture, its own and others of its label first."""
    seen = [i for i in range(60, COUNT) if space.present["image"][i]]
    results = {
        space.ids[i]: [space.ids[j] for j in sorted(seen, key=lambda j: (j != i, j % 3 != i % 3))][:10] for i in seen
    }
    return Search(len(seen), Hits(1.0, 0.5), Hits(0.6, 1 / 3), 12.3, results)


def test_the_table_and_the_sheet_of_a_search(space: FeatureSpace, search: Search, tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.search_table(search, replace(search, own=Hits(0.75, 0.5))))
    rows = [line.split() for line in console.export_text().splitlines() if line.split()[:1] in (["voice"], ["words"])]
    assert rows == [
        ["voice", str(search.pictures), "100%", "50%", "60%", "33%", "12"],
        ["words", str(search.pictures), "75%", "50%", "60%", "33%", "12"],
    ]
    red = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 255)).save(red, "PNG")
    draw_sheet(space, search, dict.fromkeys(space.ids, red.getvalue()), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (sheet == (255, 0, 0)).all(axis=2).sum() == 3 * 10 * 96 * 96, "ten pictures for one item of each label"


def test_problems_of_a_search(space: FeatureSpace, search: Search) -> None:
    assert find_search_problems(space, {"voice": search, "words": replace(search, own=Hits(1.0, 0.4))}) == []
    id = next(iter(search.results))
    wrong = replace(search, own=Hits(0.1, 0.5), results={**search.results, id: ["emoji-3"]})
    assert find_search_problems(space, {"voice": search, "words": wrong}) == [
        "some searches found too few pictures",
        "a search for test items found others",
        "pictures are found by words hardly better than by guessing",
    ]


class TestProblems:
    def test_none(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        assert find_problems(job(), sample, space, learned) == []

    def test_items_that_did_not_succeed(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        assert find_problems(job(88), sample, space, learned) == ["2 of 90 items did not succeed"]

    def test_items_that_are_missing(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        short = replace(space, ids=space.ids[:-1])
        assert "the features are of 89 items, not of the 90 submitted" in find_problems(job(), sample, short, learned)

    def test_vectors_that_are_missing(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        sample.items[0]["image"] = "x"
        assert find_problems(job(), sample, space, learned) == ["61 items have image, but 60 have its vector"]

    def test_vectors_that_are_not_numbers(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        broken = space.vectors["text"].copy()
        broken[3, 0] = np.nan
        spoilt = replace(space, vectors={**space.vectors, "text": broken})
        assert find_problems(job(), sample, spoilt, learned) == ["some vectors are not finite"]

    def test_a_model_that_says_nothing(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        learned.scores["fused"]["low"] = space.majority
        assert find_problems(job(), sample, space, learned) == ["the model tells labels no better than guessing"]

    def test_predictions_that_are_missing(self, space: FeatureSpace, sample: Sample, learned: Learned) -> None:
        del learned.predictions["emoji-3"]
        assert find_problems(job(), sample, space, learned) == ["there are predictions of 89 items, not of the 90"]


def test_the_sample_is_what_the_demo_expects() -> None:
    sample = Sample.read()
    assert len(sample.items) >= 1200
    assert SAMPLE.stat().st_size < 8 * 1024**2
    assert len(sample.pictures) == sample.count(Modality.IMAGE)
    assert all(item["metadata"].keys() >= {"name", "codepoints"} for item in sample.items)
