"""Shapley values over modalities: what each one adds, averaged over all orders in which they could be added.

Shapley, "A value for n-person games" (1953). Exact: with k modalities, all 2^k subsets are tried. The values of the
modalities add up to the difference between all of them and none.
"""

from collections.abc import Callable, Collection
from itertools import combinations
from math import factorial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.queues import Modality

Value = TypeVar("Value", float, NDArray[np.float64])


def shapley_values(
    value: Callable[[frozenset[Modality]], Value], modalities: Collection[Modality]
) -> dict[Modality, Value]:
    """The share of each modality in value(all) − value(none); `value` is called once for each subset."""
    known = {frozenset(s): value(frozenset(s)) for k in range(len(modalities) + 1) for s in combinations(modalities, k)}
    return {m: _share(m, known, len(modalities)) for m in modalities}


def _share(modality: Modality, known: dict[frozenset[Modality], Value], count: int) -> Value:
    without = [subset for subset in known if modality not in subset]
    weight = {s: factorial(len(s)) * factorial(count - len(s) - 1) / factorial(count) for s in without}
    gains = [(known[s | {modality}] - known[s]) * weight[s] for s in without]
    return sum(gains[1:], start=gains[0])
