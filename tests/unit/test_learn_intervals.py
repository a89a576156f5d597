"""The statistics of `make learn` against independent computations."""

import numpy as np
import pytest
from scipy import stats

from tests.learn.intervals import bootstrap, corrected_t, paired_bootstrap


def coins(repeats: int, count: int, chance: float, seed: int) -> np.ndarray:
    """Right or wrong [repeats, count]; an item that is hard is so in all repeats."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=count)
    return (rng.normal(size=(repeats, count)) * 0.3 + hard < stats.norm.ppf(chance) * 1.04).astype(float)


def test_the_bootstrap_is_that_of_scipy() -> None:
    """The percentile interval over items, of one model and of the difference of two."""
    one, other = coins(5, 300, 0.8, 1), coins(5, 300, 0.7, 2)
    for ours, theirs in (
        (bootstrap(one), one.mean(axis=0)),
        (paired_bootstrap(one, other), one.mean(axis=0) - other.mean(axis=0)),
    ):
        reference = stats.bootstrap(
            (theirs,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
        ).confidence_interval
        assert ours.value == pytest.approx(theirs.mean())
        assert (ours.low, ours.high) == pytest.approx(tuple(reference), abs=0.003)


def test_pairs_share_their_items() -> None:
    """Two models that fail on the same items differ by much less than independent ones would."""
    one = coins(5, 400, 0.7, 1)
    other = one.copy()
    other[:, :8] = 0
    paired = paired_bootstrap(one, other)
    apart = paired_bootstrap(one, other[:, np.random.default_rng(0).permutation(400)])
    assert paired.low > 0
    assert apart.high - apart.low > 3 * (paired.high - paired.low)
    assert paired_bootstrap(one, one) == bootstrap(one - one)


def test_repeats_are_no_further_items() -> None:
    """The interval of five equal repeats is that of one: as many items, as much chance."""
    once = coins(1, 200, 0.7, 4)
    assert bootstrap(np.repeat(once, 5, axis=0)) == pytest.approx(bootstrap(once))


def test_intervals_hold_what_they_promise() -> None:
    """About 95 of 100 intervals contain the accuracy that the items were drawn with."""
    inside = 0
    for seed in range(200):
        interval = bootstrap(coins(5, 150, 0.7, seed), draws=500)
        inside += interval.low <= 0.7 <= interval.high
    assert 0.9 <= inside / 200 <= 0.99


def test_the_corrected_t_interval_is_the_papers() -> None:
    """Nadeau and Bengio's formula by hand; without overlap of training items it is Student's."""
    differences = np.random.default_rng(0).normal(0.05, 0.02, 25)
    plain = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (corrected_t(differences, 0.0).low, corrected_t(differences, 0.0).high) == pytest.approx(tuple(plain))
    wide = corrected_t(differences, 0.2)
    factor = np.sqrt((1 / 25 + 0.25) / (1 / 25))
    assert wide.high - wide.low == pytest.approx((plain.high - plain.low) * factor)
