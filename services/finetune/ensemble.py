"""Ensemble selection: how often each of many models is counted in the mean of their predictions.

Caruana et al., "Ensemble selection from libraries of models" (ICML 2004): greedily, with replacement, the model that
makes the ensemble best on held-out items.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

#: Rounds of selection; the ensemble that was best after any of them is taken.
ROUNDS = 50


def select_ensemble(
    outputs: Sequence[NDArray[np.float64]], loss: Callable[[NDArray[np.float64]], float], rounds: int = ROUNDS
) -> list[int]:
    """How often each model counts. `outputs` are its predictions of the held-out items, [n, …]; `loss` judges a mean.

    The ensemble starts with the best model, and is never worse on these items. Equally good ones: the first.
    """
    best, best_counts = np.inf, [0] * len(outputs)
    counts, total = [0] * len(outputs), np.zeros_like(outputs[0])
    for size in range(1, rounds + 1):
        losses = [loss((total + more) / size) for more in outputs]
        place = int(np.argmin(losses))
        counts[place] += 1
        total = total + outputs[place]
        if losses[place] < best:
            best, best_counts = losses[place], list(counts)
    return best_counts
