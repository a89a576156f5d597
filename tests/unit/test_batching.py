"""Batches: planned by cost, cut smaller when memory runs out, one item's failure kept to itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.catalog import EncoderSpec
from shared.errors import ShardCancelledError
from shared.ml.encoders import batching
from shared.ml.encoders.base import Vectors
from shared.ml.encoders.batching import encode_all, plan_batches

COSTS = st.lists(st.integers(0, 300), max_size=80)


class SquaresEncoder:
    """Items are numbers, which are their cost; the vector of x is (x, x²). `check` sees each batch first."""

    dimension = 2
    fingerprint = "squares"
    spec = EncoderSpec(id="squares", modality="text", dimension=2, loader="hashing")

    def __init__(self, check: Callable[[Sequence[int]], None] = lambda batch: None):
        self.decode_options: dict[str, Any] = {}
        self.check = check
        self.batches: list[list[int]] = []

    def preprocess(self, media: Any) -> Any:
        return media

    def cost(self, prepared: int) -> int:
        return prepared

    def encode(self, batch: Sequence[int]) -> Vectors:
        self.check(batch)
        self.batches.append(list(batch))
        return self.vectors(batch)

    @staticmethod
    def vectors(items: Sequence[int]) -> Vectors:
        return np.array([(x, x * x) for x in items], np.float32).reshape(-1, 2)


def padded(batch: Sequence[int]) -> int:
    return max(batch) * len(batch)


@given(COSTS, st.integers(1, 2000), st.integers(1, 20))
def test_batches_hold_every_item_once_and_keep_to_both_limits(costs: list[int], max_cost: int, max_items: int) -> None:
    batches = plan_batches(costs, max_cost=max_cost, max_items=max_items)
    assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or padded([costs[i] for i in batch]) <= max_cost


@given(COSTS, st.integers(1, 2000))
def test_batches_hold_items_of_like_cost(costs: list[int], max_cost: int) -> None:
    in_order = [costs[i] for batch in plan_batches(costs, max_cost=max_cost, max_items=8) for i in batch]
    assert in_order == sorted(costs, reverse=True)


@given(COSTS, st.integers(1, 2000))
def test_vectors_come_back_in_the_order_of_the_items(items: list[int], max_cost: int) -> None:
    vectors, errors = encode_all(SquaresEncoder(), items, max_cost=max_cost)
    np.testing.assert_array_equal(vectors, SquaresEncoder.vectors(items))
    assert vectors.dtype == np.float32
    assert not errors


@given(COSTS, st.integers(1, 300), st.integers(1, 10))
def test_out_of_memory_costs_only_the_items_that_do_not_fit_alone(items: list[int], room: int, most: int) -> None:
    def check(batch: Sequence[int]) -> None:
        if padded(batch) > room or len(batch) > most:
            raise MemoryError

    vectors, errors = encode_all(SquaresEncoder(check), items, max_cost=10_000)
    assert set(errors) == {i for i, item in enumerate(items) if item > room}
    assert {error.error_code for error in errors.values()} <= {"out_of_memory"}
    expected = SquaresEncoder.vectors([0 if item > room else item for item in items])
    np.testing.assert_array_equal(vectors, expected)


def test_after_out_of_memory_later_batches_are_small_at_once() -> None:
    failures = []

    def check(batch: Sequence[int]) -> None:
        if len(batch) > 16:
            failures.append(len(batch))
            raise MemoryError

    encoder = SquaresEncoder(check)
    encode_all(encoder, [10] * 256, max_cost=640)
    assert failures == [64, 32]
    assert [len(batch) for batch in encoder.batches] == [16] * 16


def _allocate_too_much() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def _raise(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    "fail",
    [
        _raise(MemoryError()),
        _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        _allocate_too_much,
    ],
    ids=["python", "cuda", "torch's CPU allocator"],
)
def test_every_kind_of_out_of_memory_is_known(fail: Callable[[], None]) -> None:
    encoder = SquaresEncoder(lambda batch: fail() if len(batch) > 2 else None)
    vectors, errors = encode_all(encoder, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(vectors, SquaresEncoder.vectors([1, 2, 3, 4, 5]))
    assert not errors


def test_other_errors_of_the_encoder_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        encode_all(SquaresEncoder(lambda batch: _raise(RuntimeError("shapes do not match"))()), [1, 2])


@given(st.lists(st.sampled_from([1.0, np.nan, np.inf, -np.inf]), max_size=20))
def test_an_item_whose_vector_is_not_finite_is_an_error_of_its_own(numbers: list[float]) -> None:
    class Broken(SquaresEncoder):
        def encode(self, batch: Sequence[int]) -> Vectors:
            return np.array([(1.0, numbers[i]) for i in batch], np.float32)

        def cost(self, prepared: int) -> int:
            return 1

    vectors, errors = encode_all(Broken(), range(len(numbers)), max_cost=4)
    bad = {i for i, number in enumerate(numbers) if not np.isfinite(number)}
    assert set(errors) == bad
    assert {error.error_code for error in errors.values()} <= {"non_finite_vector"}
    assert all((vectors[i] == (0 if i in bad else 1)).all() for i in range(len(numbers)))


def test_cancelling_stops_before_the_next_batch() -> None:
    encoder = SquaresEncoder()

    def cancel() -> bool:
        if encoder.batches:
            raise ShardCancelledError("cancelled")
        return False

    with pytest.raises(ShardCancelledError):
        encode_all(encoder, [5] * 10, max_cost=20, before_batch=cancel)
    assert len(encoder.batches) == 1


def test_batches_are_short_as_long_as_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By measured time: 2 ms a unit of cost make 10 units; before anything is measured, a small share is tried."""
    now = 0.0

    def work(batch: Sequence[int]) -> None:
        nonlocal now
        now += 0.002 * padded(batch)

    monkeypatch.setattr(batching.time, "perf_counter", lambda: now)
    encoder = SquaresEncoder(work)
    waits = iter([True] * 3 + [False] * 10)
    items = [1, 2] * 100
    vectors, _ = encode_all(encoder, items, max_cost=64, before_batch=lambda: next(waits))
    assert [padded(batch) for batch in encoder.batches[:5]] == [2, 10, 10, 64, 64]
    np.testing.assert_array_equal(vectors, SquaresEncoder.vectors(items))
