"""Fusion by hand: properties of concat and weighted, each checked against a computation item by item."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.ml.fusion.concat import concat
from shared.ml.fusion.weighted import weighted
from shared.queues import Modality

finite = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def slices(draw: st.DrawFn) -> tuple[dict, dict]:
    """Vectors and masks of a few items in one to three modalities."""
    n = draw(st.integers(0, 6))
    chosen = draw(st.lists(st.sampled_from(list(Modality)), min_size=1, unique=True))
    vectors = {m: draw(hnp.arrays(np.float32, (n, draw(st.integers(1, 5))), elements=finite)) for m in chosen}
    mask = {m: draw(hnp.arrays(np.bool_, n)) for m in chosen}
    return vectors, mask


weights = st.dictionaries(st.sampled_from(list(Modality)), st.floats(0, 1000))


@given(slices())
def test_concat_joins_item_by_item(data: tuple[dict, dict]) -> None:
    """Each row is the vectors one after the other, zeros where one is missing."""
    vectors, mask = data
    fused = concat(vectors, mask)
    for i, row in enumerate(fused):
        expected = [x for m, v in vectors.items() for x in (v[i] if mask[m][i] else np.zeros_like(v[i]))]
        np.testing.assert_array_equal(row, np.array(expected, np.float32))
    assert fused.dtype == np.float32


@given(slices(), weights)
def test_weighted_scales_each_modality_to_its_weight(data: tuple[dict, dict], chosen: dict) -> None:
    """Per item and modality: w·v/‖v‖ in float64, zeros where it is missing or zero."""
    vectors, mask = data
    fused = weighted(vectors, mask, chosen)
    for i, row in enumerate(fused):
        expected = []
        for m, v in vectors.items():
            exact = v[i].astype(np.float64)
            norm = np.sqrt((exact**2).sum())
            expected.extend(chosen.get(m, 1.0) * exact / norm if mask[m][i] and norm else np.zeros_like(exact))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    assert fused.dtype == np.float32


@given(slices(), weights, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(data: tuple[dict, dict], chosen: dict, random: object) -> None:
    """Fusing shuffled items gives the shuffled result."""
    vectors, mask = data
    n = len(next(iter(vectors.values())))
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = {m: v[order] for m, v in vectors.items()}, {m: k[order] for m, k in mask.items()}
    np.testing.assert_array_equal(concat(*shuffled), concat(vectors, mask)[order])
    np.testing.assert_array_equal(weighted(*shuffled, chosen), weighted(vectors, mask, chosen)[order])


@given(slices(), weights)
def test_a_missing_modality_never_leaks(data: tuple[dict, dict], chosen: dict) -> None:
    """Whatever stands in the vectors of missing modalities, NaN included, the result is the same."""
    vectors, mask = data
    garbage = {m: np.where(mask[m][:, None], v, np.float32("nan")) for m, v in vectors.items()}
    np.testing.assert_array_equal(concat(garbage, mask), concat(vectors, mask))
    np.testing.assert_array_equal(weighted(garbage, mask, chosen), weighted(vectors, mask, chosen))
