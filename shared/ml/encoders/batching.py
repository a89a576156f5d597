"""Runs an encoder over many items: batches of like length, cut smaller when memory runs out, errors kept apart."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.errors import ItemError
from shared.ml.encoders.base import Encoder, Vectors
from shared.queues import Modality

#: Padded cost of one batch (tokens, pixels, samples) that keeps a device busy without holding up what waits behind it.
MAX_COST: dict[Modality, int] = {Modality.TEXT: 1024, Modality.IMAGE: 32 * 224 * 224, Modality.AUDIO: 32 * 10 * 16_000}

#: Model time of a batch while somebody waits for the model, and the share of a usual batch (one in so many) that is
#: tried as long as nothing was measured.
SHORT_SECONDS, _CAUTION = 0.02, 32

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def plan_batches(costs: Sequence[int], *, max_cost: int, max_items: int) -> list[list[int]]:
    """Cut items into batches of like cost.

    Returns lists of indexes into `costs` that hold each index once, costliest batch first. In a batch, longest × count
    is at most `max_cost` unless it is a single item, and count at most `max_items`.
    """
    order = _costliest_first(costs)
    batches = []
    while order:
        batches.append(_take(order, costs, max_cost, max_items))
    return batches


def encode_all(
    encoder: Encoder,
    prepared: Sequence[Any],
    *,
    max_cost: int | None = None,
    max_items: int = 256,
    before_batch: Callable[[], bool] = lambda: False,
) -> tuple[Vectors, dict[int, ItemError]]:
    """Encode everything in `prepared`, in batches by cost (`max_cost` defaults to MAX_COST of the modality).

    Returns float32 [len(prepared), dimension] in the order given, and by index the ItemError of each item that has no
    vector (its row is zeros): `out_of_memory` if it does not fit even alone, `non_finite_vector` if the model answered
    NaN or infinity. When a batch does not fit, it and those behind it are cut to half its cost. `before_batch` is asked
    whether the next batch shall be short (about SHORT_SECONDS); what it raises (cancellation) ends the run.
    """
    limit = max_cost or MAX_COST[encoder.spec.modality]
    costs = [encoder.cost(item) for item in prepared]
    vectors: Vectors = np.zeros((len(prepared), encoder.dimension), np.float32)
    errors: dict[int, ItemError] = {}
    order = _costliest_first(costs)
    short = limit // _CAUTION
    while order:
        batch = _take(order, costs, min(limit, short) if before_batch() else limit, max_items)
        padded = max(max(costs[i] for i in batch) * len(batch), 1)
        began = time.perf_counter()
        rows = _encode_or_none(encoder, [prepared[i] for i in batch])
        if rows is not None:
            _store(rows, batch, vectors, errors)
            short = int(padded * SHORT_SECONDS / (time.perf_counter() - began))
        elif len(batch) == 1:
            errors[batch[0]] = ItemError("This item does not fit into the model's memory.", code="out_of_memory")
        else:
            limit = padded // 2
            order.extendleft(reversed(batch))
    return vectors, errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: Python's, torch's on a device, or that of torch's CPU allocator."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _costliest_first(costs: Sequence[int]) -> deque[int]:
    return deque(sorted(range(len(costs)), key=lambda i: costs[i], reverse=True))


def _take(order: deque[int], costs: Sequence[int], max_cost: int, max_items: int) -> list[int]:
    """Takes the next batch off `order`, in which the costliest come first."""
    room = min(max_items, max_cost // max(costs[order[0]], 1)) or 1
    return [order.popleft() for _ in range(min(room, len(order)))]


def _encode_or_none(encoder: Encoder, batch: Sequence[Any]) -> Vectors | None:
    """The batch's vectors, or None if memory ran out. The error is dropped here, and with it what its frames hold."""
    try:
        return encoder.encode(batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _store(rows: Vectors, batch: list[int], vectors: Vectors, errors: dict[int, ItemError]) -> None:
    finite = np.all(np.isfinite(rows), axis=1)
    vectors[batch] = np.where(finite[:, None], rows, 0)
    for index, ok in zip(batch, finite, strict=True):
        if not ok:
            errors[index] = ItemError("The model answered NaN or infinity for this item.", code="non_finite_vector")
