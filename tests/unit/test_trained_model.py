"""Trained models: their files, predictions, fused vectors and contributions, of one network and of an ensemble."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import JobError
from shared.ml.multimodal import MultimodalConfig, MultimodalModel
from shared.ml.trained import Member, Task, TrainedConfig, TrainedModel, save_trained
from shared.queues import Modality

DIMENSIONS = {Modality.TEXT: 3, Modality.IMAGE: 4, Modality.AUDIO: 2}


def model(task: Task = Task.SINGLE_LABEL, fusions: tuple[str, ...] = ("gated",), **options: object) -> TrainedModel:
    """Networks with random weights."""
    outputs = {Task.REGRESSION: 1, Task.ALIGN: None}.get(task, 3)
    members, states = [], []
    for seed, fusion in enumerate(fusions):
        torch.manual_seed(seed)
        config = MultimodalConfig(dimensions=DIMENSIONS, outputs=outputs, hidden=5, fusion=fusion)
        members.append(Member(name=fusion, weight=0.5 + seed, model=config))
        states.append(MultimodalModel(config).state_dict())
    classes = [] if outputs in (1, None) else ["a", "b", "c"]
    prior = [0.2, 0.3, 0.5] if classes else [7.0]
    config = TrainedConfig(task=task, classes=classes, prior=prior, members=members, **options)
    return TrainedModel.load(save_trained(config, states) | {"README.md": b"?"})


def items(count: int = 20, seed: int = 0) -> tuple[dict, dict]:
    """Random vectors; each modality is missing from some."""
    rng = np.random.default_rng(seed)
    vectors = {m: rng.normal(size=(count, d)).astype(np.float32) for m, d in DIMENSIONS.items()}
    return vectors, {m: rng.random(count) < 0.7 for m in DIMENSIONS}


def test_the_files_are_the_model() -> None:
    """Two loads say the same, to the last bit."""
    vectors, mask = items()
    first, second = model(fusions=("gated", "late")), model(fusions=("gated", "late"))
    np.testing.assert_array_equal(first.outputs(vectors, mask), second.outputs(vectors, mask))
    assert first.dimensions == DIMENSIONS


def test_an_ensemble_says_the_weighted_mean() -> None:
    """Of the probabilities of its members."""
    vectors, mask = items()
    both = model(fusions=("gated", "late"))
    gated = model(fusions=("gated",)).outputs(vectors, mask)
    torch.manual_seed(1)
    config = MultimodalConfig(dimensions=DIMENSIONS, outputs=3, hidden=5, fusion="late")
    alone = TrainedConfig(
        task=Task.SINGLE_LABEL, classes=["a", "b", "c"], prior=[0.2, 0.3, 0.5],
        members=[Member(name="late", weight=1, model=config)],
    )  # fmt: skip
    late = TrainedModel.load(save_trained(alone, [MultimodalModel(config).state_dict()])).outputs(vectors, mask)
    np.testing.assert_allclose(both.outputs(vectors, mask), (0.5 * gated + 1.5 * late) / 2, atol=1e-12)


def test_predictions_of_each_task() -> None:
    """The most probable class, all that are at least as probable as not, or a number in the units of the targets."""
    vectors, mask = items()
    said = model().predict(vectors, mask)
    assert said.probabilities is not None
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1)
    assert said.labels == [["abc"[place]] for place in said.probabilities.argmax(axis=1)]
    several = model(Task.MULTI_LABEL).predict(vectors, mask)
    assert several.probabilities is not None
    assert several.labels == [[c for c, p in zip("abc", row, strict=True) if p >= 0.5] for row in several.probabilities]
    rest = model(one_vs_rest=True).predict(vectors, mask)
    assert rest.probabilities is not None
    np.testing.assert_allclose(
        rest.probabilities, several.probabilities / several.probabilities.sum(axis=1, keepdims=True)
    )
    plain, scaled = model(Task.REGRESSION), model(Task.REGRESSION, mean=7.0, std=2.0)
    anything = np.logical_or.reduce(list(mask.values()))
    expected = plain.outputs(vectors, mask)[anything] * 2 + 7
    values = scaled.predict(vectors, mask).values
    assert values is not None
    np.testing.assert_allclose(values[anything], expected)
    np.testing.assert_array_equal(values[~anything], 7)


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION])
def test_of_nothing_it_says_what_is_so_on_average(task: Task) -> None:
    """Of an item without any modality."""
    vectors, _ = items(4)
    nothing = {m: np.zeros(4, np.bool_) for m in DIMENSIONS}
    it = model(task)
    usual = it.config.prior if it.config.classes else 7.0
    np.testing.assert_array_equal(it.outputs(vectors, nothing), [usual] * 4)


@settings(max_examples=10)
@given(st.sampled_from(["gated", "attention", "concat", "low_rank"]), st.integers(0, 9))
def test_what_is_missing_never_leaks(fusion: str, seed: int) -> None:
    """NaN where a modality is missing changes nothing."""
    vectors, mask = items(seed=seed)
    garbage = {m: np.where(mask[m][:, None], rows, np.float32("nan")) for m, rows in vectors.items()}
    it = model(fusions=(fusion,))
    np.testing.assert_array_equal(it.outputs(vectors, mask), it.outputs(garbage, mask))
    np.testing.assert_array_equal(it.fused(vectors, mask), it.fused(garbage, mask))


@pytest.mark.parametrize("fusions", [("gated",), ("gated", "late", "attention")])
@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION])
def test_contributions_add_up(task: Task, fusions: tuple[str, ...]) -> None:
    """To the probability of the most probable class, or the value, less what is so on average; missing is 0."""
    vectors, mask = items()
    it = model(task, fusions)
    outputs, shares = it.outputs(vectors, mask), it.contributions(vectors, mask)
    best = outputs.argmax(axis=1) if outputs.ndim == 2 else None
    told = outputs if best is None else outputs.max(axis=1)
    average = 7.0 if best is None else np.array(it.config.prior)[best]
    np.testing.assert_allclose(sum(shares.values()), told - average, atol=1e-12)
    for modality, share in shares.items():
        np.testing.assert_allclose(share[~mask[modality]], 0, atol=1e-12)
        assert np.abs(share[mask[modality]]).max() > 1e-3


def test_fused_vectors() -> None:
    """What the head sees. Of an ensemble, cosines are the weighted mean of its members' cosines."""
    vectors, mask = items()
    one = model(fusions=("gated",)).fused(vectors, mask)
    assert one.dtype == np.float32
    assert one.shape == (20, model(fusions=("gated",)).dimension) == (20, 128)
    both = model(fusions=("gated", "concat"))
    fused = both.fused(vectors, mask)
    assert fused.shape == (20, both.dimension) == (20, 128 + 15)

    def cosines(rows: np.ndarray) -> np.ndarray:
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return units @ units.T

    there = np.logical_or.reduce(list(mask.values()))
    a, b = fused[there][:, :128], fused[there][:, 128:]
    np.testing.assert_allclose(cosines(fused[there]), (0.5 * cosines(a) + 1.5 * cosines(b)) / 2, atol=1e-5)


def test_an_aligned_space_is_for_searching() -> None:
    """Unit vectors of each modality and of all; there is nothing to predict."""
    vectors, mask = items()
    it = model(Task.ALIGN, ("align",))
    projections = it.project(vectors, mask)
    for modality, rows in projections.items():
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), mask[modality], atol=1e-5)
    together = sum(projections.values())
    expected = together / np.maximum(np.linalg.norm(together, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(it.fused(vectors, mask), expected, atol=1e-5)
    with pytest.raises(JobError) as caught:
        it.predict(vectors, mask)
    assert caught.value.error_code == "unsuitable_model"


def test_no_items() -> None:
    """An empty part of a feature set."""
    vectors, mask = items(0)
    assert model().predict(vectors, mask).labels == []
    assert model().fused(vectors, mask).shape == (0, 128)
    assert {len(share) for share in model().contributions(vectors, mask).values()} == {0}
