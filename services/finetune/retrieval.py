"""How well one modality of an item finds another among those of all items."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.queues import Modality

_RECALLS = (1, 5, 10)
_ROWS_AT_ONCE = 1024


def retrieval(
    projections: Mapping[Modality, NDArray[np.float32]], present: Mapping[Modality, NDArray[np.bool_]]
) -> dict[str, Any]:
    """For every direction of every pair of modalities, over the items that have both: `text→image` and so on.

    `recall@k`: share of the items whose other modality is among the k most similar (cosine); `median_rank`, 1 is best;
    `mean_reciprocal_rank`. `chance` has what guessing would reach. `projections` are unit vectors [n, d].
    """
    found = {}
    for a, b in permutations(projections, 2):
        both = present[a] & present[b]
        if both.any():
            ranks = _ranks(projections[a][both], projections[b][both])
            guessed = np.arange(1, len(ranks) + 1)
            found[f"{a.value}→{b.value}"] = {"items": len(ranks), **_scores(ranks), "chance": _scores(guessed)}
    return found


def mean_reciprocal_rank(found: Mapping[str, Any]) -> float:
    """In the mean over all directions."""
    return float(np.mean([scores["mean_reciprocal_rank"] for scores in found.values()])) if found else 0.0


def _ranks(queries: NDArray[np.float32], answers: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each query's own answer, 1 being the most similar; behind those that are just as similar."""
    ranks = []
    for first in range(0, len(queries), _ROWS_AT_ONCE):
        similar = queries[first : first + _ROWS_AT_ONCE] @ answers.T
        own = similar[np.arange(len(similar)), first + np.arange(len(similar))]
        ranks.append((similar >= own[:, None]).sum(axis=1))
    return np.concatenate(ranks)


def _scores(ranks: NDArray[np.int64]) -> dict[str, float]:
    return {
        **{f"recall@{k}": float((ranks <= k).mean()) for k in _RECALLS},
        "median_rank": float(np.median(ranks)),
        "mean_reciprocal_rank": float((1 / ranks).mean()),
    }
