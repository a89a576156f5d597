"""What holds for every fusion and for models built on them: nothing leaks, rows are rows, order does not matter."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from shared.ml.fusion.build import make_fusion
from shared.ml.multimodal import MultimodalModel
from shared.queues import Modality
from shared.schemas import FusionMethod

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[Mapping[Modality, int]], nn.Module]
Items = tuple[dict[Modality, Tensor], dict[Modality, Tensor]]

DIMENSIONS = {Modality.TEXT: 5, Modality.IMAGE: 3, Modality.AUDIO: 4}
EACH = list(Modality)


def fusion(method: str, **parameters: Any) -> Make:
    """Makes a fusion of two outputs."""
    return lambda dimensions: make_fusion(FusionMethod(method), dimensions, parameters, outputs=2)


def model(method: str, *, hidden: int = 6, head_hidden: int = 0, **parameters: Any) -> Make:
    """Makes a model of two outputs."""

    def make(dimensions: Mapping[Modality, int]) -> nn.Module:
        config = {"dimensions": dict(dimensions), "outputs": 2, "hidden": hidden, "head_hidden": head_hidden}
        return MultimodalModel.from_config({**config, "fusion": method, "parameters": parameters})

    return make


CASES: dict[str, Make] = {
    "concat": fusion("concat"),
    "weighted": fusion("weighted"),
    "weighted, learned": fusion("weighted", learned=True),
    "align": fusion("align", dimension=4),
    "gated": fusion("gated", dimension=4),
    "low_rank": fusion("low_rank", dimension=4, rank=3),
    "attention": fusion("attention", dimension=8, heads=2, layers=2),
    "late": fusion("late"),
    "late, given": fusion("late", learned=False),
    "model of weighted": model("weighted", hidden=0),
    "model of attention": model("attention", head_hidden=3, dimension=8, heads=2),
    "model of late": model("late"),
}
ZERO_WITHOUT_MODALITIES = [
    "concat", "weighted", "weighted, learned", "align", "gated", "late", "late, given",
]  # fmt: skip

every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def build(make: Make, dimensions: Mapping[Modality, int], seed: int = 0) -> nn.Module:
    """In float64, so that what should be equal is."""
    torch.manual_seed(seed)
    return make(dimensions).double().eval()


def draw_vectors(
    chosen: list[Modality], n: int, seed: int, dtype: torch.dtype = torch.float64
) -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(n, DIMENSIONS[m], generator=generator, dtype=dtype) for m in chosen}


@st.composite
def items(draw: st.DrawFn) -> Items:
    """A few items of some modalities, each of which has some of them."""
    chosen = draw(st.lists(st.sampled_from(EACH), min_size=1, unique=True))
    n = draw(st.integers(0, 5))
    present = {m: draw(st.lists(st.booleans(), min_size=n, max_size=n)) for m in chosen}
    mask = {m: torch.tensor(rows, dtype=torch.bool) for m, rows in present.items()}
    return draw_vectors(chosen, n, draw(st.integers(0, 2**32))), mask


def module_for(make: Make, vectors: Mapping[Modality, Tensor]) -> nn.Module:
    return build(make, {m: DIMENSIONS[m] for m in vectors})


def pick(data: Items, rows: Any) -> Items:
    return {m: v[rows] for m, v in data[0].items()}, {m: k[rows] for m, k in data[1].items()}


def outcome(module: nn.Module, vectors: Mapping[Modality, Tensor], mask: Mapping[Modality, Tensor]) -> Iterator[Tensor]:
    """The result, then the gradients of all parameters and inputs for some loss of it."""
    inputs = {m: v.clone().requires_grad_() for m, v in vectors.items()}
    output = module(inputs, mask)
    yield output.detach()
    loss = (output * torch.linspace(1, 2, output.shape[1], dtype=output.dtype)).square().sum()
    needed = [*module.parameters(), *(inputs[m] for m in Modality if m in inputs)]
    yield from torch.autograd.grad(loss, needed, allow_unused=True, materialize_grads=True)


@every_case
@given(data=items(), random=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_rows_are_independent_and_in_the_order_of_the_items(make: Make, data: Items, random: Any) -> None:
    module = module_for(make, data[0])
    fused = module(*data)
    order = list(range(len(fused)))
    random.shuffle(order)
    torch.testing.assert_close(module(*pick(data, order)), fused[order])
    for i in order:
        torch.testing.assert_close(module(*pick(data, [i])), fused[[i]])


@every_case
@given(data=items(), garbage=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e300, 0.0]))
@settings(max_examples=40)
def test_a_missing_modality_never_leaks(make: Make, data: Items, garbage: float) -> None:
    """What stands in its place changes neither the result nor a gradient, by not a single bit."""
    vectors, mask = data
    module = module_for(make, vectors)
    other = {m: v.where(mask[m][:, None], garbage) for m, v in vectors.items()}
    expected = list(outcome(module, vectors, mask))
    for mine, theirs in zip(outcome(module, other, mask), expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.isfinite().all()
    for m, gradient in zip(
        [m for m in Modality if m in vectors], expected[len(expected) - len(vectors) :], strict=True
    ):
        assert not gradient[~mask[m]].any()


@every_case
@given(data=items())
@settings(max_examples=20)
def test_the_order_of_the_modalities_does_not_matter(make: Make, data: Items) -> None:
    vectors, mask = data
    module = module_for(make, vectors)
    backwards = dict(reversed(vectors.items()))
    other = module_for(make, backwards)
    assert list(other.state_dict()) == list(module.state_dict())
    assert torch.equal(other(backwards, dict(reversed(mask.items()))), module(vectors, mask))


@every_case
def test_modalities_that_are_not_fused_are_passed_over(make: Make) -> None:
    vectors, mask = draw_vectors(EACH, 2, 0), {m: torch.ones(2, dtype=torch.bool) for m in EACH}
    module = build(make, {Modality.IMAGE: 3})
    expected = module({Modality.IMAGE: vectors[Modality.IMAGE]}, {Modality.IMAGE: mask[Modality.IMAGE]})
    assert torch.equal(module(vectors, mask), expected)


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_gradients_reach_every_parameter_and_every_present_vector(make: Make, seed: int) -> None:
    vectors, mask = draw_vectors(EACH, 4, seed), {m: torch.ones(4, dtype=torch.bool) for m in EACH}
    mask[Modality.TEXT][0] = mask[Modality.AUDIO][1] = mask[Modality.IMAGE][1] = False
    module = build(make, DIMENSIONS)
    _, *gradients = outcome(module, vectors, mask)
    parameters, inputs = gradients[: -len(EACH)], gradients[-len(EACH) :]
    assert len(parameters) == len(list(module.parameters()))
    assert all(gradient.any() for gradient in parameters)
    for m, gradient in zip(EACH, inputs, strict=True):
        assert torch.equal(gradient.any(1), mask[m])


@every_case
@pytest.mark.parametrize("n", [0, 3])
def test_an_item_without_any_modality_gives_finite_numbers(make: Make, n: int) -> None:
    vectors, mask = draw_vectors(EACH, n, 0), {m: torch.zeros(n, dtype=torch.bool) for m in EACH}
    module = build(make, DIMENSIONS)
    fused, *gradients = outcome(module, vectors, mask)
    assert fused.shape[0] == n
    assert all(tensor.isfinite().all() for tensor in (fused, *gradients))
    assert not any(gradient.any() for gradient in gradients[-len(EACH) :])


@pytest.mark.parametrize("name", ZERO_WITHOUT_MODALITIES)
def test_an_item_without_any_modality_is_zero(name: str) -> None:
    mask = {m: torch.zeros(2, dtype=torch.bool) for m in EACH}
    assert not build(CASES[name], DIMENSIONS)(draw_vectors(EACH, 2, 0), mask).any()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_is_kept(make: Make, dtype: torch.dtype, training: bool) -> None:
    vectors, mask = draw_vectors(EACH, 4, 1), {m: torch.tensor([True, True, False, m == "text"]) for m in EACH}
    module = build(make, DIMENSIONS)
    with torch.inference_mode():
        expected = module(vectors, mask)
        module.train(training).to(dtype)
        fused = module({m: v.to(dtype) for m, v in vectors.items()}, mask)
    assert (fused.dtype, fused.shape) == (dtype, expected.shape)
    assert fused.isfinite().all()
    if not training:
        tolerance = 0.1 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(fused.double(), expected, atol=tolerance, rtol=tolerance)


@every_case
@pytest.mark.parametrize("device", ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_device_is_kept(make: Make, device: str) -> None:
    vectors = {m: v.to(device) for m, v in draw_vectors(EACH, 2, 0, torch.float32).items()}
    mask = {m: torch.ones(2, dtype=torch.bool, device=device) for m in EACH}
    fused = make(DIMENSIONS).to(device)(vectors, mask)
    assert fused.device.type == device
    assert fused.shape[0] == 2


@every_case
def test_the_state_survives_safetensors(make: Make) -> None:
    """Which refuses tensors that share memory."""
    data = draw_vectors(EACH, 3, 0), {m: torch.tensor([True, True, m == "audio"]) for m in EACH}
    module, other = build(make, DIMENSIONS), build(make, DIMENSIONS, seed=1)
    other.load_state_dict(load(save(module.state_dict())))
    assert torch.equal(other(*data), module(*data))


@every_case
def test_the_seed_decides_the_weights(make: Make) -> None:
    first, same, other = (build(make, DIMENSIONS, seed) for seed in (3, 3, 4))
    pairs = list(zip(first.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    drawn = [a for a in first.parameters() if a.ndim > 1]
    assert not drawn or any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("model")])
def test_dimension_is_that_of_the_result(name: str) -> None:
    module = build(CASES[name], DIMENSIONS)
    mask = {m: torch.ones(1, dtype=torch.bool) for m in EACH}
    assert module.dimension == module(draw_vectors(EACH, 1, 0), mask).shape[1]
