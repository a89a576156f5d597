"""Splits: what was given stays, what was not is drawn in proportion."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.errors import JobError
from shared.fine_tuning import Splitting
from shared.ml.splits import divide, quantile_strata, stratify

splits = st.sampled_from([None, "train", "validation", "test"])
shares = st.lists(st.floats(0.05, 1), min_size=2, max_size=5)


def one_hot(places: np.ndarray) -> np.ndarray:
    return places[:, None] == np.arange(places.max() + 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(hnp.arrays(np.int64, st.integers(1, 120), elements=st.integers(0, 5)), shares, st.integers(0, 9))
def test_each_class_is_divided_in_proportion(classes: np.ndarray, wanted: list[float], seed: int) -> None:
    """With one class an item, each part gets its share of the class, rounded up or down."""
    strata = one_hot(classes)
    part = stratify(strata, wanted, rng(seed))
    assert ((part >= 0) & (part < len(wanted))).all()
    for place, share in enumerate(wanted):
        expected = strata.sum(axis=0) * share / sum(wanted)
        assert (np.abs(strata[part == place].sum(axis=0) - expected) < 1 + 1e-9).all()


def test_labels_of_several_are_divided_in_proportion() -> None:
    """Iterative stratification keeps even a rare label in all parts; drawing at random would lose it in most draws."""
    labels = rng(1).random((400, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
    part = stratify(labels, [0.6, 0.2, 0.2], rng(2))
    for place, share in enumerate([0.6, 0.2, 0.2]):
        assert (np.abs(labels[part == place].sum(axis=0) - labels.sum(axis=0) * share) <= 2).all()
        assert labels[part == place].any(axis=0).all()


@given(st.lists(splits, min_size=12, max_size=60), st.integers(0, 3))
def test_given_splits_are_kept(given_splits: list[str | None], seed: int) -> None:
    """Every item is in one part; a part that was given stays as it is, and what trains may only be drawn for others."""
    strata = one_hot(np.arange(len(given_splits)) % 2)
    assume(given_splits.count("train") + given_splits.count(None) >= 6)
    parts = divide(given_splits, strata, Splitting(), rng(seed))
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together) == list(range(len(given_splits)))
    for name, rows in parts.named().items():
        given_to = [i for i, split in enumerate(given_splits) if split == name]
        assert name == "train" or not given_to or list(rows) == given_to
    assert not {"validation", "test"} & {given_splits[i] for i in parts.train}


def test_shares_of_all_items() -> None:
    """Without given splits."""
    parts = divide([None] * 200, one_hot(np.arange(200) % 4), Splitting(validation=0.1, test=0.3), rng())
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (120, 20, 60)
    assert parts.notes == []


def test_missing_parts_come_from_items_without_a_split() -> None:
    """As long as there are enough; whoever was given to training stays there."""
    parts = divide(["train"] * 50 + [None] * 50, one_hot(np.arange(100) % 2), Splitting(), rng())
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (65, 15, 20)
    assert set(range(50)) <= set(parts.train.tolist())
    assert len(parts.notes) == 2


def test_missing_parts_come_from_training_if_they_must() -> None:
    """And it is said in words."""
    parts = divide(["train"] * 80 + ["test"] * 20, one_hot(np.arange(100) % 2), Splitting(), rng())
    assert (len(parts.train), len(parts.validation)) == (65, 15)
    assert parts.test.tolist() == list(range(80, 100))
    assert parts.notes == ["No item was given for validation: 15 items given for training were drawn for it."]


def test_nothing_to_train_on() -> None:
    """All items are spoken for."""
    with pytest.raises(JobError) as caught:
        divide(["validation"] * 5 + ["test"] * 5, one_hot(np.arange(10) % 2), Splitting(), rng())
    assert caught.value.error_code == "too_few_items"


def test_numbers_are_divided_by_quantiles() -> None:
    """Each part sees the small and the large ones."""
    values = rng(3).lognormal(size=300)
    part = stratify(quantile_strata(values), [0.7, 0.3], rng())
    few, many = np.sort(values[part == 1]), np.sort(values[part == 0])
    np.testing.assert_allclose(np.quantile(few, [0.1, 0.5, 0.9]), np.quantile(many, [0.1, 0.5, 0.9]), rtol=0.3)
    assert quantile_strata(np.ones(50)).shape == (50, 2)
