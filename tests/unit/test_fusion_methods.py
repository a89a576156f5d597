"""Each fusion against an independent computation, item by item: its paper's formula, or torch's own layers."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import nn

from shared.ml.fusion.base import Fusion, unit
from shared.ml.fusion.build import make_fusion
from shared.queues import Modality
from shared.schemas import FusionMethod

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT, IMAGE, AUDIO = Modality
Arrays = dict[Modality, NDArray[Any]]
Item = dict[Modality, NDArray[np.float64]]


def arrays(elements: st.SearchStrategy[float], dtype: Any) -> st.SearchStrategy[tuple[Arrays, Arrays]]:
    """Vectors and masks of a few items in one to three modalities."""

    @st.composite
    def draw_arrays(draw: st.DrawFn) -> tuple[Arrays, Arrays]:
        n = draw(st.integers(0, 4))
        chosen = draw(st.lists(st.sampled_from(list(Modality)), min_size=1, unique=True).map(sorted_modalities))
        vectors = {m: draw(hnp.arrays(dtype, (n, draw(st.integers(1, 4))), elements=elements)) for m in chosen}
        return vectors, {m: draw(hnp.arrays(np.bool_, n)) for m in chosen}

    return draw_arrays()


def sorted_modalities(chosen: list[Modality]) -> list[Modality]:
    return [m for m in Modality if m in chosen]


def numbers(module: nn.Module) -> dict[str, NDArray[np.float64]]:
    """The module's state by name."""
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def fuse(module: nn.Module, vectors: Arrays, mask: Arrays) -> NDArray[Any]:
    with torch.inference_mode():
        fused = module(*({m: torch.from_numpy(a) for m, a in group.items()} for group in (vectors, mask)))
    result: NDArray[Any] = fused.numpy()
    return result


def make(method: FusionMethod, vectors: Arrays, **parameters: Any) -> Fusion:
    torch.manual_seed(7)
    dimensions = {m: v.shape[1] for m, v in vectors.items()}
    return make_fusion(method, dimensions, parameters, outputs=3).double().eval()


def present_in(vectors: Arrays, mask: Arrays) -> list[Item]:
    """What each item has."""
    count = len(next(iter(mask.values())))
    return [{m: v[i].astype(np.float64) for m, v in vectors.items() if mask[m][i]} for i in range(count)]


usual = arrays(st.floats(-10, 10), np.float64)
large = arrays(st.floats(-(2.0**100), 2.0**100, width=32), np.float32)
weights = st.dictionaries(st.sampled_from(list(Modality)), st.floats(0.001, 1000), max_size=3)


@given(large)
def test_concat_joins_the_vectors(data: tuple[Arrays, Arrays]) -> None:
    vectors, mask = data
    fused = fuse(make_fusion(FusionMethod.CONCAT, {m: v.shape[1] for m, v in vectors.items()}, {}), *data)
    assert fused.dtype == np.float32
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        expected = [item.get(m, np.zeros(v.shape[1])) for m, v in vectors.items()]
        np.testing.assert_array_equal(row, np.concatenate(expected).astype(np.float32))


@given(large, weights, st.booleans())
def test_weighted_scales_each_vector_to_its_weight(
    data: tuple[Arrays, Arrays], chosen: dict[Modality, float], learned: bool
) -> None:
    vectors, mask = data
    given = {m: w for m, w in chosen.items() if m in vectors}
    dimensions = {m: v.shape[1] for m, v in vectors.items()}
    fused = fuse(make_fusion(FusionMethod.WEIGHTED, dimensions, {"weights": given, "learned": learned}), *data)
    assert fused.dtype == np.float32
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        expected = []
        for m, d in dimensions.items():
            v = item.get(m, np.zeros(d))
            scaled = (v / (np.sqrt((v**2).sum()) or 1.0)).astype(np.float32)
            expected.append(scaled * np.float32(given.get(m, 1.0)))
        np.testing.assert_allclose(row, np.concatenate(expected), rtol=3e-7)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 5e-324])
def test_no_length_over_or_underflows(scale: float) -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    expected = unit(rows)
    torch.testing.assert_close(expected, torch.tensor([[0.6, -0.8], [0, 0], [0, 1]], dtype=torch.float64))
    torch.testing.assert_close(unit(rows * scale), expected)


def test_unit_has_the_gradient_of_v_over_its_length() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(unit, rows)
    torch.testing.assert_close(unit(rows), rows / rows.norm(dim=1, keepdim=True))


@given(usual)
@settings(max_examples=40)
def test_align_is_the_middle_of_the_projections(data: tuple[Arrays, Arrays]) -> None:
    vectors, mask = data
    module = make(FusionMethod.ALIGN, vectors, dimension=3)
    state, fused = numbers(module), fuse(module, *data)
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        total = np.zeros(3)
        for m, v in item.items():
            projected = state[f"projections.{m}.weight"] @ v + state[f"projections.{m}.bias"]
            total += projected / np.linalg.norm(projected)
        length = np.linalg.norm(total)
        np.testing.assert_allclose(row, total / (length or 1), atol=1e-9 / max(length, 1e-3))


@given(usual)
@settings(max_examples=40)
def test_gated_is_the_gated_multimodal_unit(data: tuple[Arrays, Arrays]) -> None:
    """h = Σ σ(Z_m [v_1, …, v_k]) · tanh(W_m v_m), zeros in the place of what is missing."""
    vectors, mask = data
    module = make(FusionMethod.GATED, vectors, dimension=3)
    state, fused = numbers(module), fuse(module, *data)
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        together = np.concatenate([item.get(m, np.zeros(v.shape[1])) for m, v in vectors.items()])
        expected = np.zeros(3)
        for m, v in item.items():
            gate = 1 / (1 + np.exp(-(state[f"gates.{m}.weight"] @ together + state[f"gates.{m}.bias"])))
            expected += gate * np.tanh(state[f"features.{m}.weight"] @ v + state[f"features.{m}.bias"])
        np.testing.assert_allclose(row, expected, atol=1e-12)


@given(usual, st.integers(1, 4))
@settings(max_examples=40)
def test_low_rank_contracts_the_outer_product_with_the_full_weight(data: tuple[Arrays, Arrays], rank: int) -> None:
    """Both tensors are built entry by entry."""
    vectors, mask = data
    module = make(FusionMethod.LOW_RANK, vectors, dimension=2, rank=rank)
    nn.init.normal_(module.get_parameter("bias"))
    state, fused = numbers(module), fuse(module, *data)
    factors = [state[f"factors.{m}"] for m in vectors]
    shape = [v.shape[1] + 1 for v in vectors.values()]
    weight = np.zeros((*shape, 2))
    for place in product(*map(range, shape)):
        for r in range(rank):
            weight[place] += np.prod([factor[r, j] for factor, j in zip(factors, place, strict=True)], axis=0)
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        z = [np.append(item.get(m, np.zeros(v.shape[1])), 1.0) for m, v in vectors.items()]
        expected = state["bias"].copy()
        for place in product(*map(range, shape)):
            expected += np.prod([part[j] for part, j in zip(z, place, strict=True)]) * weight[place]
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_low_rank_starts_at_a_sane_scale(rank: int, missing: int) -> None:
    """With components of variance 1 results are about 1, whatever the rank, the dimensions and what is missing."""
    vectors = {
        m: np.random.default_rng(0).standard_normal((200, d)) for m, d in zip(Modality, (300, 20, 5), strict=True)
    }
    mask = {m: np.full(200, i >= missing) for i, m in enumerate(Modality)}
    fused = fuse(make(FusionMethod.LOW_RANK, vectors, dimension=50, rank=rank), vectors, mask)
    assert 0.5 < np.sqrt((fused**2).mean()) < 4


@given(usual)
@settings(max_examples=30)
def test_attention_is_a_transformer_over_the_present_modalities(data: tuple[Arrays, Arrays]) -> None:
    """torch's own layers with the same weights, on one item at a time, of which missing modalities are left out."""
    vectors, mask = data
    module = make(FusionMethod.ATTENTION, vectors, dimension=8, heads=2, layers=2)
    state, fused = module.state_dict(), fuse(module, *data)
    layers = [reference_layer(state, i) for i in range(2)]
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        tokens = [state["embeddings"][0]]
        for place, m in enumerate(vectors, 1):
            if m in item:
                tokens.append(state[f"projections.{m}.weight"] @ torch.from_numpy(item[m]) + state["embeddings"][place])
        sequence = torch.stack(tokens)[None]
        for layer in layers:
            sequence = layer(sequence)
        expected = nn.functional.layer_norm(sequence[0, 0], [8], state["norm.weight"], state["norm.bias"])
        np.testing.assert_allclose(row, expected.detach().numpy(), atol=1e-9)


def reference_layer(state: Mapping[str, torch.Tensor], index: int) -> nn.Module:
    """torch's encoder layer with the weights of ours."""
    names = {
        "self_attn.in_proj_": "attention_in.", "self_attn.out_proj.": "attention_out.", "norm1.": "attention_norm.",
        "norm2.": "linear_norm.", "linear1.": "linear.0.", "linear2.": "linear.3.",
    }  # fmt: skip
    layer = nn.TransformerEncoderLayer(8, 2, 32, activation="gelu", batch_first=True, norm_first=True).double().eval()
    layer.load_state_dict(
        {
            theirs + kind: state[f"layers.{index}.{ours}{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
    )
    return layer


@given(usual, weights, st.booleans())
@settings(max_examples=40)
def test_late_averages_the_decisions_of_the_present(
    data: tuple[Arrays, Arrays], chosen: dict[Modality, float], learned: bool
) -> None:
    vectors, mask = data
    given = {m: w for m, w in chosen.items() if m in vectors}
    module = make(FusionMethod.LATE, vectors, weights=given, learned=learned)
    state, fused = numbers(module), fuse(module, *data)
    assert ("log_weights" in dict(module.named_parameters())) == learned
    for row, item in zip(fused, present_in(vectors, mask), strict=True):
        decisions = {m: state[f"heads.{m}.weight"] @ v + state[f"heads.{m}.bias"] for m, v in item.items()}
        total = sum(given.get(m, 1.0) for m in item) or 1.0
        expected = sum((given.get(m, 1.0) / total * decision for m, decision in decisions.items()), np.zeros(3))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_learned_weights_start_at_the_given_ones_and_move() -> None:
    vectors = {TEXT: torch.ones(1, 2), AUDIO: torch.ones(1, 3)}
    mask = {m: torch.ones(1, dtype=torch.bool) for m in vectors}
    for method in (FusionMethod.WEIGHTED, FusionMethod.LATE):
        parameters = {"weights": {TEXT: 2.0}, "learned": True}
        module = make_fusion(method, {TEXT: 2, AUDIO: 3}, parameters, outputs=1)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        before = numbers(module)
        (module(vectors, mask) - 3).square().mean().backward()
        optimiser.step()
        name = next(name for name in before if name.endswith("weights"))
        np.testing.assert_allclose(np.exp(before[name]) if "log" in name else before[name], [2, 1])
        assert (numbers(module)[name] != before[name]).all()
