"""Whole fine_tune runs on small data: each method, what they leave, and that they repeat themselves."""

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from services.finetune.data import Dataset
from services.finetune.recipes import Outcome, fine_tune
from shared.errors import JobError
from shared.ml.trained import TrainedModel
from shared.queues import Modality
from tests.unit.finetune_data import Outside, Stopped, blobs, dataset, request, without_times

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"epochs": 12, "batch_size": 64, "hidden": 16, "learning_rate": 0.01, "patience": 4}
TEXT, IMAGE, AUDIO = Modality.TEXT, Modality.IMAGE, Modality.AUDIO


def run(data: Dataset, outside: Outside | None = None, **options: Any) -> Outcome:
    options = {"training": QUICK} | options
    return fine_tune(data, request(**options), outside or Outside(), device="cpu")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """A classifier of three classes; a tenth of the modalities are missing."""
    return run(blobs(300, noise=1.6, missing=0.1), preset="good", splitting={"folds": 3})


def test_fused_is_better_than_each_modality(outcome: Outcome) -> None:
    """On the same test items; sound is noise, and no better than guessing."""
    table = outcome.metrics["alone"]
    assert set(table) == {"fused", "text", "image", "audio"}
    assert table["fused"]["score"] > max(table["text"]["score"], table["image"]["score"]) > 0.5
    assert table["audio"]["low"] < 0.4
    assert table["fused"]["score"] == outcome.metrics["test"]["accuracy"]
    assert table["text"]["items_there"] < table["text"]["items"] == outcome.metrics["items"]["test"]


def test_contributions_add_up_to_the_score(outcome: Outcome) -> None:
    """And noise contributes next to nothing."""
    found = outcome.metrics["contributions"]
    assert sum(found["by_modality"].values()) == pytest.approx(found["all"] - found["none"])
    assert found["all"] == outcome.metrics["test"]["accuracy"]
    assert abs(found["by_modality"]["audio"]) < 0.1 < found["by_modality"]["text"]


def test_robustness_falls_from_the_score(outcome: Outcome) -> None:
    """Without disturbance it is the score; with all the text gone it is lower, with all the noise gone it is not."""
    found = outcome.metrics["robustness"]
    for kind in ("noise", "missing"):
        assert {curve["scores"][0] for m, curve in found[kind].items() if m != "levels"} == {
            outcome.metrics["test"]["accuracy"]
        }
    for modality in ("text", "image"):
        assert found["missing"][modality]["scores"][-1] < outcome.metrics["test"]["accuracy"] - 0.03
        assert found["noise"][modality]["scores"][-1] < outcome.metrics["test"]["accuracy"] - 0.03
    assert found["missing"]["audio"]["area"] > outcome.metrics["test"]["accuracy"] - 0.03


def test_the_best_by_validation_is_chosen(outcome: Outcome) -> None:
    """Of several fusions, the one with the lowest loss."""
    tried = outcome.metrics["candidates"]
    assert {c["fusion"] for c in tried} == {"concat", "weighted", "gated", "late", "attention"}
    [chosen] = [c for c in tried if c["weight"]]
    assert chosen["validation_loss"] == min(c["validation_loss"] for c in tried)
    assert outcome.spec["fusions"] == [chosen["fusion"]]


def test_the_stored_model_is_what_was_measured(outcome: Outcome) -> None:
    """Loaded from its files, it says of each test item what is written there."""
    model = TrainedModel.load(outcome.files)
    data = blobs(300, noise=1.6, missing=0.1)
    said = model.predict(data.vectors, data.present)
    lines = [json.loads(line) for line in outcome.files["test_items.jsonl"].splitlines()]
    place = {id: i for i, id in enumerate(data.ids)}
    assert said.probabilities is not None
    for line in lines:
        assert line["prediction"] == said.labels[place[line["id"]]]
        best = said.probabilities[place[line["id"]]].max()
        assert line["probability"] == pytest.approx(best)
        prior = model.config.prior[model.config.classes.index(line["prediction"][0])]
        assert sum(line["contributions"].values()) == pytest.approx(best - prior)
    right = np.mean([line["prediction"] == line["label"] for line in lines])
    assert right == pytest.approx(outcome.metrics["test"]["accuracy"])
    assert outcome.spec["dimension"] == model.dimension
    assert outcome.spec["dimensions"] == {"text": 6, "image": 8, "audio": 4}


def test_the_files_can_be_read(outcome: Outcome) -> None:
    """JSON, Markdown, pictures, and learning curves in TensorBoard's format, with the checksums it looks at."""
    metrics = json.loads(outcome.files["metrics.json"])
    assert {key: value for key, value in metrics.items() if key != "curves"} == outcome.metrics
    card = outcome.files["README.md"].decode()
    for section in ("Data", "Scores on test items", "Each modality alone, and fused", "Classes", "Cross-validation"):
        assert f"## {section}" in card
    pictures = [name for name in outcome.files if name.endswith(".png")]
    assert len(pictures) == 4
    for name in pictures:
        assert f"({name})" in card
        with Image.open(io.BytesIO(outcome.files[name])) as picture:
            picture.verify()
    events = read_events(outcome.files["tensorboard/gated/events.out.tfevents.0.trivium"])
    assert events[0].file_version == "brain.Event:2"
    told = {value.tag: value.simple_value for value in events[-1].summary.value}
    assert (events[-1].step, told) == (
        len(metrics["curves"]["gated"]),
        pytest.approx({k: v for k, v in metrics["curves"]["gated"][-1].items() if k != "epoch"}, rel=1e-6),
    )


def read_events(data: bytes) -> list[Event]:
    events = []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        content = data[12 : 12 + length]
        assert struct.unpack_from("<I", data, 8) == (masked_crc32c(data[:8]),)
        assert struct.unpack_from("<I", data, 12 + length) == (masked_crc32c(content),)
        events.append(Event.FromString(content))
        data = data[16 + length :]
    return events


def test_folds_test_every_item_once(outcome: Outcome) -> None:
    """Their mean is near the score of the one split."""
    found = outcome.metrics["folds"]
    assert len(found["folds"]) == 3
    assert found["mean"] == pytest.approx(np.mean(found["folds"]))
    assert found["mean"] == pytest.approx(outcome.metrics["test"]["accuracy"], abs=0.15)


def same(a: Outcome, b: Outcome) -> bool:
    """Whether two runs ended with the same model, files and figures, but for times."""
    timed = {"metrics.json", "README.md"}
    return (
        without_times(a.metrics) == without_times(b.metrics)
        and a.spec == b.spec
        and a.files.keys() == b.files.keys()
        and all(a.files[name] == b.files[name] for name in a.files.keys() - timed)
    )


def test_the_order_of_items_does_not_matter() -> None:
    """The same items shuffled make the same model, bit by bit; another seed makes another."""
    data = blobs(100, missing=0.1)
    first = run(data)
    assert same(first, run(data.take(np.random.default_rng(0).permutation(100))))
    other = run(data, training=QUICK | {"seed": 1})
    assert other.files["model.safetensors"] != first.files["model.safetensors"]


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "best", "fusion": {"method": "late"}},
        {"preset": "fast", "search": {"trials": 8}, "training": {"epochs": 12, "batch_size": 64, "patience": 4}},
        {"method": "align", "preset": "good"},
    ],
    ids=["best", "search", "align"],
)
def test_a_run_that_was_stopped_ends_the_same(options: dict[str, Any]) -> None:
    """Stopped at random places, again and again, each time going on from what was saved."""
    data, whole = blobs(100, missing=0.1), Outside()
    expected = run(data, whole, **options)
    saved: dict[str, bytes] = {}
    rng = np.random.default_rng(1)
    for _ in range(3):
        stop_at = int(rng.integers(1, whole.checks // 3))
        with pytest.raises(Stopped):
            run(data, Outside(stop_at, saved), **options)
    assert same(run(data, Outside(saved=saved), **options), expected)


def test_only_fusion_solves_exclusive_or() -> None:
    """The answer is in neither modality: only one that lets them interact finds it."""
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(2, 400, 3))
    labels = [["odd"] if (a > 0) != (b > 0) else ["even"] for a, b in zip(text[:, 0], image[:, 0], strict=True)]
    data = dataset({TEXT: text, IMAGE: image}, labels)
    gated = run(data, fusion={"method": "gated"}, training={"hidden": 32, "learning_rate": 0.003, "patience": 40})
    scores = {name: row["score"] for name, row in gated.metrics["alone"].items()}
    assert scores["fused"] > 0.85
    assert max(scores["text"], scores["image"]) < 0.68


def test_a_regressor() -> None:
    """A sum over two modalities, far from zero: more is explained by both than by each; values are in its units."""
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(2, 300, 4))
    targets = 1000 + 50 * (text[:, 0] + image[:, 1]) + rng.normal(size=300)
    data = dataset({TEXT: text, IMAGE: image}, targets=targets)
    found = run(data, method="regressor", preset="good", training={"epochs": 60, "learning_rate": 0.01})
    table = found.metrics["alone"]
    assert found.metrics["main_score"] == "r2"
    assert table["fused"]["score"] > 0.9 > 0.7 > max(table["text"]["score"], table["image"]["score"])
    assert found.metrics["test"]["mae"] < 15
    tried, [chosen] = found.metrics["tried"], [c["name"] for c in found.metrics["candidates"] if c["weight"]]
    assert tried.keys() == {c["name"] for c in found.metrics["candidates"]}
    assert tried[chosen]["score"] == table["fused"]["score"]
    line = json.loads(found.files["test_items.jsonl"].splitlines()[0])
    assert 700 < line["prediction"] < 1300
    assert sum(line["contributions"].values()) == pytest.approx(line["prediction"] - 1000, abs=10)
    assert found.spec["classes"] == []


def test_several_labels() -> None:
    """Each label is told by one modality."""
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(2, 300, 4))
    labels = [[name for name, x in (("t", a), ("i", b)) if x > 0] for a, b in zip(text[:, 0], image[:, 0], strict=True)]
    data = dataset({TEXT: text, IMAGE: image}, labels)
    found = run(data, training={"epochs": 30, "learning_rate": 0.02, "class_weights": "balanced"})
    assert found.spec["multi_label"] is True
    assert found.metrics["test"]["f1_micro"] > 0.85
    assert found.metrics["alone"]["text"]["score"] < found.metrics["alone"]["fused"]["score"]
    assert sum(found.metrics["items"].values()) == sum(bool(names) for names in labels)
    assert "left_out" in {check["code"] for check in found.metrics["checks"]}
    said = TrainedModel.load(found.files).predict(data.vectors, data.present)
    assert {len(names) for names in said.labels} == {0, 1, 2} or {len(names) for names in said.labels} == {1, 2}


def test_alignment_finds_the_other_modality() -> None:
    """Two views of the same hidden things: far above chance in both directions."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 4))
    views = {m: hidden @ rng.normal(size=(4, d)) + 0.1 * rng.normal(size=(300, d)) for m, d in ((TEXT, 8), (IMAGE, 12))}
    data = dataset(views)
    for options in (
        {"training": {"epochs": 60, "learning_rate": 0.01, "patience": 20, "weight_decay": 0.01}},
        {"fusion": {"method": "align", "parameters": {"learned_by": "cca", "dimension": 4, "regularisation": 0.01}}},
    ):
        found = run(data, method="align", **options)
        scores = found.metrics["test"]["retrieval"]
        assert set(scores) == {"text→image", "image→text"}
        for direction in scores.values():
            assert direction["recall@5"] > 0.8 > 0.1 > direction["chance"]["recall@5"]
            assert direction["median_rank"] <= 2
        assert found.spec["method"] == "align"
        assert "text→image" in found.files["README.md"].decode()
        assert TrainedModel.load(found.files).dimension == found.spec["dimension"]


def test_one_modality() -> None:
    """There is nothing to fuse, and nothing to compare with."""
    found = run(blobs(120).only([TEXT]), preset="good")
    assert found.metrics["alone"]["text"]["score"] == found.metrics["alone"]["fused"]["score"]
    assert {c["name"] for c in found.metrics["candidates"]} == {"concat", "linear"}


def test_what_the_request_gives_is_used() -> None:
    """In every network, whatever the preset would choose."""
    given = {**QUICK, "dropout": 0.3, "head": 7, "optimizer": "sgd", "loss": "bce", "weight_decay": 0.0}
    found = run(blobs(100), training=given, fusion={"method": "low_rank", "parameters": {"rank": 2, "dimension": 8}})
    [tried] = found.metrics["candidates"]
    assert {name: tried["settings"][name] for name in ("dropout", "head", "optimizer", "hidden", "weight_decay")} == {
        "dropout": 0.3, "head": 7, "optimizer": "sgd", "hidden": 16, "weight_decay": 0.0,
    }  # fmt: skip
    assert tried["parameters"] == {"rank": 2, "dimension": 8}
    assert TrainedModel.load(found.files).config.one_vs_rest is True


def test_events_tell_how_it_goes() -> None:
    """For whoever watches the job: the parts, epochs, networks; every fact is JSON."""
    outside = Outside()
    run(blobs(100), outside, search={"trials": 2}, training={"epochs": 3})
    kinds = [kind for kind, _ in outside.events]
    assert {"split", "epoch", "trial", "model", "step"} <= set(kinds)
    for _, facts in outside.events:
        json.dumps(facts, allow_nan=False)
    assert outside.checks > kinds.count("epoch")


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        (blobs(8), {}, "too_few_items"),
        (dataset({TEXT: np.ones((30, 2))}), {}, "no_labels"),
        (dataset({TEXT: np.ones((30, 2))}, [["a"]] * 30), {}, "one_class"),
        (dataset({TEXT: np.ones((30, 2))}, [["a", "b"]] * 30), {"multi_label": False}, "several_labels"),
        (blobs(30), {"training": {"loss": "mse"}}, "unsuitable_loss"),
        (blobs(30), {"training": {"class_weights": {"z": 2}}}, "unknown_class"),
        (blobs(30), {"method": "regressor"}, "no_targets"),
        (blobs(30).only([TEXT]), {"method": "align"}, "one_modality"),
        (blobs(30), {"method": "align", "fusion": {"method": "late"}}, "unsuitable_fusion"),
        (dataset({TEXT: np.ones((30, 2))}, targets=np.ones(30)), {"method": "regressor"}, "constant_target"),
    ],
)
def test_what_cannot_be_trained_is_said_in_words(data: Dataset, options: dict[str, Any], code: str) -> None:
    """With a stable code."""
    with pytest.raises(JobError) as caught:
        run(data, **options)
    assert caught.value.error_code == code


def test_targets_that_are_text() -> None:
    """Are for generation."""
    from dataclasses import replace

    data = replace(blobs(30), text_targets=frozenset({"item-0003"}))
    with pytest.raises(JobError, match="'item-0003' is text") as caught:
        run(data, method="regressor")
    assert caught.value.error_code == "text_target"
