"""One space for all modalities: the contrastive loss and CCA, each against an independent computation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cross_decomposition import CCA
from torch import Tensor

from shared.errors import JobError
from shared.ml.fusion.align import AlignFusion
from shared.ml.fusion.cca import fit_cca
from shared.ml.fusion.info_nce import InfoNCE
from shared.queues import Modality

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT, IMAGE, AUDIO = Modality
Numbers = NDArray[np.float64]
Items = tuple[dict[Modality, Tensor], dict[Modality, Tensor]]


@st.composite
def projected(draw: st.DrawFn) -> Items:
    """Unit vectors of a few items in two or three modalities."""
    chosen = draw(st.lists(st.sampled_from(list(Modality)), min_size=2, unique=True))
    n = draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = {m: torch.randn(n, 3, generator=generator, dtype=torch.float64) for m in chosen}
    mask = {m: torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool) for m in chosen}
    return {m: v / v.norm(dim=1, keepdim=True) for m, v in rows.items()}, mask


def loss_row_by_row(projections: dict[Modality, Tensor], mask: dict[Modality, Tensor], scale: float) -> float:
    """-log softmax of the right partner, for each item, ordered pair of modalities and row."""
    losses = []
    for a in projections:
        for b in projections:
            both = [i for i in range(len(mask[a])) if mask[a][i] and mask[b][i]]
            for i in both if a != b else ():
                similar = [math.exp(scale * float(projections[a][i] @ projections[b][j])) for j in both]
                losses.append(math.log(sum(similar)) - scale * float(projections[a][i] @ projections[b][i]))
    return sum(losses) / max(len(losses), 1)


@given(projected())
def test_info_nce_is_a_cross_entropy_row_by_row(data: Items) -> None:
    loss = InfoNCE().double()(*data)
    torch.testing.assert_close(loss.item(), loss_row_by_row(*data, 1 / 0.07), atol=1e-6, rtol=1e-6)


@given(projected(), st.sampled_from([float("nan"), float("inf")]))
def test_items_with_fewer_than_two_modalities_do_not_count(data: Items, garbage: float) -> None:
    """Nor does what stands in the place of a missing modality: same loss, same gradients."""
    found = []
    alone = torch.stack(list(data[1].values())).sum(0) < 2
    fewer = {m: k & ~alone for m, k in data[1].items()}
    for mask, filling in ((data[1], 0.0), (fewer, garbage)):
        rows = {m: v.where(mask[m][:, None], filling).requires_grad_() for m, v in data[0].items()}
        module = InfoNCE().double()
        module(rows, mask).backward()
        found.append([module.logit_scale.grad, *(v.grad for v in rows.values())])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.isfinite().all()


def test_the_scale_is_learned_but_never_above_a_hundred() -> None:
    module = InfoNCE()
    assert math.isclose(module.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-6)
    angles = torch.tensor([0.0, 0.1])
    rows = dict.fromkeys((TEXT, IMAGE), torch.stack([angles.cos(), angles.sin()], dim=1))
    mask = {m: torch.ones(2, dtype=torch.bool) for m in rows}
    optimiser = torch.optim.SGD(module.parameters(), lr=1e4)
    for sign in (1, -1):  # with the right partners a larger scale is better; and it can come down again
        loss = sign * module(rows, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        module(rows, mask)
        assert module.logit_scale.exp().item() <= 100.001
        assert (module.logit_scale.item() > math.log(99)) == (sign == 1)


def test_info_nce_keeps_its_precision_with_bfloat16_projections() -> None:
    torch.manual_seed(0)
    rows = {m: torch.nn.functional.normalize(torch.randn(50, 8), dim=1).bfloat16() for m in (TEXT, AUDIO)}
    mask = {m: torch.ones(50, dtype=torch.bool) for m in rows}
    exact = loss_row_by_row({m: v.double() for m, v in rows.items()}, mask, 1 / 0.07)
    torch.testing.assert_close(InfoNCE()(rows, mask).item(), exact, atol=1e-4, rtol=1e-4)


def test_training_brings_the_modalities_of_an_item_together() -> None:
    """Three views of hidden factors, a third of them missing: afterwards partners find each other in new items."""
    torch.manual_seed(0)
    factors = torch.randn(300, 4)
    vectors = {m: factors @ torch.randn(4, d) for m, d in ((TEXT, 12), (IMAGE, 9), (AUDIO, 7))}
    mask = {m: torch.rand(300) > 0.33 for m in vectors}
    train, test = slice(0, 200), slice(200, 300)
    fusion, loss = AlignFusion({m: v.shape[1] for m, v in vectors.items()}, 4), InfoNCE()
    optimiser = torch.optim.Adam([*fusion.parameters(), *loss.parameters()], lr=0.02)
    seen = {m: k[train] for m, k in mask.items()}
    for _ in range(100):
        optimiser.zero_grad()
        loss(fusion.project({m: v[train] for m, v in vectors.items()}, seen), seen).backward()
        optimiser.step()
    everything = {m: torch.ones(100, dtype=torch.bool) for m in vectors}
    found = fusion.project({m: v[test] for m, v in vectors.items()}, everything)
    for a, b in ((TEXT, IMAGE), (AUDIO, TEXT), (IMAGE, AUDIO)):
        nearest = (found[a] @ found[b].T).argmax(1)
        assert (nearest == torch.arange(100)).float().mean() > 0.9


def views(seed: int, n: int, dimensions: dict[Modality, int], shared: int = 2) -> dict[Modality, Tensor]:
    """Noisy views of shared factors, with different scales and means."""
    random = np.random.default_rng(seed)
    factors = random.standard_normal((n, shared)) * np.linspace(2, 1, shared)
    return {
        m: torch.from_numpy(factors @ random.standard_normal((shared, d)) * 3 + random.standard_normal((n, d)) + 5)
        for m, d in dimensions.items()
    }


def full(vectors: dict[Modality, Tensor]) -> dict[Modality, Tensor]:
    return {m: torch.ones(len(v), dtype=torch.bool) for m, v in vectors.items()}


def variates(fusion: AlignFusion, vectors: dict[Modality, Tensor]) -> list[Numbers]:
    """The projections before they are made unit vectors."""
    return [fusion.projections[m](v).detach().numpy() for m, v in vectors.items()]


def correlations(a: Numbers, b: Numbers) -> Numbers:
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def canonical_correlations(a: Numbers, b: Numbers) -> Numbers:
    """Björck and Golub (1973): the cosines between the column spaces, by QR and SVD."""
    bases = [np.linalg.qr(x - x.mean(0))[0] for x in (a, b)]
    found: Numbers = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return found


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=30)
def test_two_modalities_have_the_canonical_correlations(seed: int, left: int, right: int) -> None:
    vectors = views(seed, 40, {TEXT: left, AUDIO: right})
    k = min(left, right)
    a, b = variates(fit_cca(vectors, full(vectors), k, 0.0), vectors)
    expected = canonical_correlations(*(v.numpy() for v in vectors.values()))
    np.testing.assert_allclose(correlations(a, b), expected, atol=1e-7)
    for x in (a, b):  # centred, of one variance, and uncorrelated with each other
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(np.cov(x.T, bias=True).reshape(k, k), np.eye(k) / 2, atol=1e-7)


def test_two_modalities_have_the_projections_of_scikit_learn() -> None:
    """Up to sign and scale."""
    vectors = views(1, 500, {TEXT: 5, IMAGE: 4})
    ours = variates(fit_cca(vectors, full(vectors), 3, 0.0), vectors)
    theirs = CCA(3, tol=1e-12, max_iter=100_000).fit_transform(*(v.numpy() for v in vectors.values()))
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.abs(correlations(mine, reference)), 1, atol=1e-5)


def test_items_with_one_modality_do_not_count_and_missing_vectors_are_not_read() -> None:
    vectors = views(2, 60, {TEXT: 3, IMAGE: 4})
    mask = {TEXT: torch.arange(60) < 45, IMAGE: torch.arange(60) >= 15}
    both = {m: v[15:45] for m, v in vectors.items()}
    expected = fit_cca(both, full(both), 3, 0.1).state_dict()
    garbage = {m: v.where(mask[m][:, None], float("nan")) for m, v in vectors.items()}
    for found in (fit_cca(vectors, mask, 3, 0.1), fit_cca(garbage, mask, 3, 0.1)):
        for name, tensor in found.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])


def maxvar(arrays: list[Numbers], k: int) -> Numbers:
    """Kettenring's MAXVAR from its definition: the vectors nearest to the column spaces of all views [n, k]."""
    projectors = []
    for x in arrays:
        basis = np.linalg.qr(x - x.mean(0))[0]
        projectors.append(basis @ basis.T)
    found: Numbers = np.linalg.eigh(sum(projectors))[1][:, ::-1][:, :k]
    return found


def test_three_modalities_have_the_common_variates_of_maxvar() -> None:
    """The sum of an item's variates is the common variate, of which MAXVAR is the definition."""
    vectors = views(3, 50, {TEXT: 4, IMAGE: 3, AUDIO: 5})
    ours = sum(variates(fit_cca(vectors, full(vectors), 3, 0.0), vectors))
    theirs = maxvar([v.numpy() for v in vectors.values()], 3)
    np.testing.assert_allclose(np.abs(correlations(np.asarray(ours), theirs)), 1, atol=1e-9)


def test_three_modalities_with_gaps_find_the_shared_factors() -> None:
    """A third of everything is missing; new items find their partners far more often than by chance (1 in 200)."""
    vectors = views(4, 1200, {TEXT: 12, IMAGE: 10, AUDIO: 8}, shared=5)
    generator = torch.Generator().manual_seed(0)
    mask = {m: torch.rand(1000, generator=generator) > 0.33 for m in vectors}
    fusion = fit_cca({m: v[:1000] for m, v in vectors.items()}, mask, 5, 0.01)
    new = {m: v[1000:] for m, v in vectors.items()}
    found = fusion.project(new, full(new))
    for a, b in ((TEXT, IMAGE), (AUDIO, TEXT), (IMAGE, AUDIO)):
        nearest = (found[a] @ found[b].T).argmax(1)
        assert (nearest == torch.arange(200)).float().mean() > 0.4


def test_modalities_that_never_meet_are_joined_by_a_third() -> None:
    """Every item has text, and either an image or a sound."""
    vectors = views(9, 1000, {TEXT: 8, IMAGE: 8, AUDIO: 8}, shared=4)
    even = torch.arange(800) % 2 == 0
    mask = {TEXT: torch.ones(800, dtype=torch.bool), IMAGE: even, AUDIO: ~even}
    fusion = fit_cca({m: v[:800] for m, v in vectors.items()}, mask, 4, 0.01)
    new = {m: v[800:] for m, v in vectors.items()}
    found = fusion.project(new, full(new))
    nearest = (found[IMAGE] @ found[AUDIO].T).argmax(1)
    assert (nearest == torch.arange(200)).float().mean() > 0.2


def test_regularisation_keeps_noise_from_correlating() -> None:
    """As many dimensions as items: plain CCA correlates pure noise perfectly. The ridge does not depend on scale."""
    random = np.random.default_rng(0)
    noise = {m: torch.from_numpy(random.standard_normal((30, 29))) for m in (TEXT, IMAGE)}
    new = {m: torch.from_numpy(random.standard_normal((500, 29))) for m in noise}

    def weight(regularisation: float, scale: float = 1.0) -> Tensor:
        scaled = {TEXT: noise[TEXT] * scale, IMAGE: noise[IMAGE]}
        return fit_cca(scaled, full(noise), 1, regularisation).projections[TEXT].weight * scale

    plain, ridged = weight(0.0), weight(1.0)
    assert (new[TEXT] @ plain.T).std() > 5 * (new[TEXT] @ ridged.T).std()
    torch.testing.assert_close(weight(1.0, scale=1e4), ridged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cca_is_computed_in_float64_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    vectors = {m: v.to(dtype) for m, v in views(5, 60, {TEXT: 3, AUDIO: 4}).items()}
    fusion = fit_cca(vectors, full(vectors), 2, 0.01)
    exact = fit_cca({m: v.double() for m, v in vectors.items()}, full(vectors), 2, 0.01)
    for name, tensor in fusion.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name].to(dtype))
    assert fusion(vectors, full(vectors)).dtype == dtype


def test_constant_components_do_no_harm() -> None:
    vectors = views(6, 50, {TEXT: 3, IMAGE: 3})
    expected = fit_cca(vectors, full(vectors), 2, 0.0)(vectors, full(vectors))
    padded = {m: torch.cat([v, torch.full((50, 2), 0.1, dtype=v.dtype)], dim=1) for m, v in vectors.items()}
    torch.testing.assert_close(fit_cca(padded, full(vectors), 2, 0.0)(padded, full(vectors)), expected)


@pytest.mark.parametrize(
    ("present", "available"), [((0, 1), 3), ((0,), 0), ((), 0)], ids=["both", "never both", "nothing"]
)
def test_too_many_dimensions_are_refused(present: Any, available: int) -> None:
    vectors = views(7, 40, {TEXT: 3, IMAGE: 5})
    mask = {m: torch.full((40,), i in present) for i, m in enumerate(vectors)}
    with pytest.raises(JobError, match=f"correlate in {available} directions") as refused:
        fit_cca(vectors, mask, 4, 0.0)
    assert refused.value.error_code == "no_common_space"


def test_one_modality_has_nothing_to_correlate_with() -> None:
    vectors = views(8, 10, {TEXT: 3})
    with pytest.raises(ValueError, match="two modalities"):
        fit_cca(vectors, full(vectors), 1, 0.0)
