"""The parts of a job's items: the same for whoever asks, and as the items themselves say."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest
from shared.items import PlannedItem, Split
from shared.ml.splits import split_items


def items(count: int, **fields: Any) -> list[PlannedItem]:
    """Items of three classes."""
    return [PlannedItem(index=i, id=f"i{i}", **{"label": ["abc"[i % 3]], **fields}) for i in range(count)]


def ask(**fields: Any) -> FineTuneRequest:
    return FineTuneRequest.model_validate({"type": "fine_tune", "features": "job-x", **fields})


@given(st.integers(20, 200), st.integers(0, 3), st.randoms())
def test_parts_follow_from_the_items_and_the_seed_alone(count: int, seed: int, chance: random.Random) -> None:
    """Whatever their order; each class is in each part in about the same proportion."""
    request = ask(training={"seed": seed})
    parts = split_items(items(count), request)
    shuffled = items(count)
    chance.shuffle(shuffled)
    assert split_items(shuffled, request) == parts
    assert len(parts) == count
    for name in "abc":
        sizes = Counter(parts[item.id] for item in items(count) if item.label == [name])
        assert abs(sizes[Split.TEST] - 0.2 * sizes.total()) < 2
        assert abs(sizes[Split.VALIDATION] - 0.15 * sizes.total()) < 2


def test_what_items_say_themselves_counts() -> None:
    """And what has no answer is in no part."""
    given_parts = ["train", "train", "validation", "test"] * 5
    said = [item.model_copy(update={"split": part}) for item, part in zip(items(20), given_parts, strict=True)]
    assert split_items(said, ask()) == {item.id: Split(str(item.split)) for item in said}
    silent = [item.model_copy(update={"label": []}) if item.index == 3 else item for item in said]
    assert split_items(silent, ask()).keys() == {item.id for item in said} - {"i3"}


def test_numbers_are_spread_over_the_parts() -> None:
    """By their size; text is no number."""
    numbered = [item.model_copy(update={"target": float(item.index)}) for item in items(200)]
    parts = split_items(numbered, ask(method="regressor"))
    means = [sum(i.index for i in numbered if parts[i.id] is part) / list(parts.values()).count(part) for part in Split]
    assert max(means) - min(means) < 15
    with pytest.raises(JobError, match="number") as caught:
        split_items(items(5, target="many"), ask(method="regressor"))
    assert caught.value.error_code == "too_few_items"
