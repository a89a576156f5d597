"""Intervals for scores of repeated cross-validation, and for differences between two models on the same items.

What is drawn are items. In repeated k-fold cross-validation each item is tested once a repeat, so its scores in several
repeats are no independent observations: they are averaged first, and the items, each with its mean for both models, are
what the bootstrap draws with replacement (Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation", Machine Learning 2018; the bootstrap is Efron's, 1979). To
draw (item, repeat) pairs would count each item five times and make intervals √5 times too narrow.

Such an interval says how the models do on other items; it takes as given what they were trained on. That training items
vary as well is in the corrected resampled t interval of differences between rounds, which is wider.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

DRAWS, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(scores: Floats, seed: int = 0, draws: int = DRAWS) -> Interval:
    """The mean of scores [repeats, n], with its percentile bootstrap interval over the n items."""
    by_item = scores.mean(axis=0)
    count = len(by_item)
    rng = np.random.default_rng(seed)
    means = rng.multinomial(count, np.full(count, 1 / count), size=draws) @ by_item / count
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(by_item.mean()), float(low), float(high))


def paired_bootstrap(scores: Floats, others: Floats, seed: int = 0, draws: int = DRAWS) -> Interval:
    """The mean of scores [repeats, n] less that of `others` of the same items, drawn together."""
    return bootstrap(scores - others, seed, draws)


def corrected_t(differences: Floats, test_share: float) -> Interval:
    """The mean of differences [rounds] between two models, where each round tests `test_share` of all items.

    Rounds overlap in their training items, which makes differences look more alike than they are. The corrected
    resampled t interval allows for it with the variance (1/rounds + tested/trained) · s² (Nadeau and Bengio, "Inference
    for the generalization error", Machine Learning 2003; for repeated folds: Bouckaert and Frank, PAKDD 2004).
    """
    rounds, mean = len(differences), float(differences.mean())
    error = np.sqrt((1 / rounds + test_share / (1 - test_share)) * differences.var(ddof=1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, rounds - 1) * error)
    return Interval(mean, mean - reach, mean + reach)
