"""The model on the vectors of items: standardisation, dropped modalities, its config, and that it learns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from shared.errors import InvalidRequestError
from shared.ml.multimodal import MultimodalConfig, MultimodalModel, drop_modalities
from shared.queues import Modality

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT, IMAGE, AUDIO = Modality
Items = tuple[dict[Modality, Tensor], dict[Modality, Tensor]]

CONFIG: dict[str, Any] = {"dimensions": {TEXT: 4, IMAGE: 3, AUDIO: 2}, "outputs": 2, "hidden": 8}


def make(**changes: Any) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel.from_config({**CONFIG, **changes})


def some_items(n: int, seed: int = 0) -> Items:
    generator = torch.Generator().manual_seed(seed)
    vectors = {m: torch.randn(n, d, generator=generator) * 3 + 1 for m, d in CONFIG["dimensions"].items()}
    return vectors, {m: torch.rand(n, generator=generator) > 0.3 for m in vectors}


VALUES = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)


@given(hnp.arrays(np.float32, (7, 4), elements=VALUES), st.lists(st.booleans(), min_size=7, max_size=7))
@settings(max_examples=50)
def test_vectors_are_standardised_over_the_items_that_have_them(rows: Any, present: list[bool]) -> None:
    """As numpy does it; what is constant, and a modality that nobody has, are divided by 1."""
    model = make(hidden=0)
    vectors, mask = some_items(7)
    garbage = np.where(np.array(present)[:, None], rows, np.float32("nan"))
    model.fit_standardisation({**vectors, TEXT: torch.from_numpy(garbage)}, {**mask, TEXT: torch.tensor(present)})
    seen = rows[present].astype(np.float64)
    mean, std = (seen.mean(0), seen.std(0)) if len(seen) else (np.zeros(4), np.ones(4))
    std[std <= np.abs(mean) * np.finfo(np.float32).eps] = 1
    state = model.state_dict()
    np.testing.assert_allclose(state["embeddings.text.mean"], mean, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(state["embeddings.text.std"], std, rtol=1e-6)


def test_what_varies_by_no_more_than_rounding_is_only_centred() -> None:
    """One float32 above another is no information; a standard deviation of that size would blow it up to some."""
    rows = torch.full((100, 2), 1000.1)
    rows[::2] = rows[::2].nextafter(torch.tensor(torch.inf))
    model = MultimodalModel.from_config({"dimensions": {TEXT: 2}, "outputs": 1, "hidden": 0})
    model.fit_standardisation({TEXT: rows}, {TEXT: torch.ones(100, dtype=torch.bool)})
    assert torch.equal(model.state_dict()["embeddings.text.std"], torch.ones(2))


@given(hnp.arrays(np.float32, (7, 4), elements=st.floats(-(2.0**-120), 2.0**-120, width=32)))
@settings(max_examples=50)
def test_what_hardly_differs_from_nothing_gives_no_infinities(rows: Any) -> None:
    """A standard deviation that is 0 in float32, or has lost its digits, is no divisor."""
    model = MultimodalModel.from_config({"dimensions": {TEXT: 4}, "outputs": 1, "hidden": 0})
    everybody = torch.ones(len(rows), dtype=torch.bool)
    model.fit_standardisation({TEXT: torch.from_numpy(rows)}, {TEXT: everybody})
    standardised = model.embed({TEXT: torch.from_numpy(rows)}, {TEXT: everybody})[TEXT]
    assert standardised.isfinite().all()
    assert standardised.abs().max() < 3  # of 7 values, none is further off than the square root of 6


def test_standardised_models_do_not_depend_on_scale_and_origin() -> None:
    vectors, mask = some_items(50)
    moved = {m: v * 100 - 7 for m, v in vectors.items()}
    outputs = []
    for seen in (vectors, moved):
        model = make(fusion="gated").eval()
        model.fit_standardisation(seen, mask)
        outputs.append(model(seen, mask))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_a_model_is_embedding_fusion_and_head() -> None:
    """Embedding, fusion and head by hand."""
    model = make(head_hidden=5).eval()
    vectors, mask = some_items(6)
    model.fit_standardisation(vectors, mask)
    state = model.state_dict()
    parts = []
    for m in Modality:
        x = (vectors[m] - state[f"embeddings.{m}.mean"]) / state[f"embeddings.{m}.std"]
        x = x @ state[f"embeddings.{m}.layers.0.weight"].T + state[f"embeddings.{m}.layers.0.bias"]
        parts.append(gelu(x) * mask[m][:, None])
    x = torch.cat(parts, dim=1) @ state["head.0.weight"].T + state["head.0.bias"]
    expected = gelu(x) @ state["head.3.weight"].T + state["head.3.bias"]
    torch.testing.assert_close(model(vectors, mask), expected)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def test_a_model_of_one_modality_is_embedding_and_head() -> None:
    config = MultimodalConfig(**CONFIG, fusion="late", parameters={"weights": {TEXT: 2}})
    alone = MultimodalModel.from_config(config.alone(IMAGE)).eval()
    assert {name.split(".")[0] for name in alone.state_dict()} == {"embeddings", "head"}
    vectors, mask = some_items(5)
    mask[IMAGE][:] = True
    head = alone.head(alone.embeddings["image"](vectors[IMAGE]))
    assert torch.equal(alone(vectors, mask), head)


def test_late_fusion_has_no_head() -> None:
    model = make(fusion="late", hidden=0)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"fusion"}
    assert model(*some_items(3)).shape == (3, 2)


@given(
    st.lists(st.sampled_from(list(Modality)), min_size=1, unique=True), st.floats(0, 0.99), st.data(), st.integers(0, 9)
)
@settings(max_examples=50)
def test_an_item_never_loses_its_last_modality(chosen: list[Modality], p: float, data: st.DataObject, n: int) -> None:
    mask = {
        m: torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool) for m in chosen
    }
    kept = drop_modalities(mask, p)
    before, after = (torch.stack([some[m] for m in chosen]) for some in (mask, kept))
    assert not (after & ~before).any()
    assert torch.equal(after.any(0), before.any(0))


@pytest.mark.parametrize("p", [0.2, 0.9])
def test_each_modality_is_lost_with_probability_p(p: float) -> None:
    """Of three, all would go with p³; then one of them, each as likely, stays."""
    torch.manual_seed(0)
    n = 200_000
    kept = drop_modalities({m: torch.ones(n, dtype=torch.bool) for m in Modality}, p)
    for m in Modality:
        assert kept[m].float().mean().item() == pytest.approx(1 - p + p**3 / 3, abs=0.005)
    both = (kept[TEXT] & kept[IMAGE]).float().mean().item()
    assert both == pytest.approx((1 - p) ** 2, abs=0.005)


def test_modalities_are_dropped_while_training_only_and_by_the_global_seed() -> None:
    model = make(modality_dropout=0.5, dropout=0.0)
    data = some_items(20)
    plain = make(dropout=0.0)(*data)
    assert torch.equal(model.eval()(*data), plain)
    model.train()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model(*data))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    torch.manual_seed(1)
    assert torch.equal(runs[0], plain_with(drop_modalities(data[1], 0.5), data[0]))


def plain_with(mask: dict[Modality, Tensor], vectors: dict[Modality, Tensor]) -> Tensor:
    state = torch.random.get_rng_state()
    output: Tensor = make(dropout=0.0)(vectors, mask)
    torch.random.set_rng_state(state)
    return output


@pytest.mark.parametrize("method", ["attention", "concat"])
def test_nothing_leaks_while_training(method: str) -> None:
    """With dropout and dropped modalities, too: what an item lost is not read either."""
    vectors, mask = some_items(12)
    garbage = {m: v.where(mask[m][:, None], float("nan")) for m, v in vectors.items()}
    found = []
    for seen in (vectors, garbage):
        model = make(fusion=method, modality_dropout=0.4, dropout=0.3)
        loss = model(seen, mask).square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("method", ["weighted", "align", "gated", "low_rank", "attention", "late"])
def test_config_and_state_make_the_same_model(method: str) -> None:
    model = make(fusion=method).eval()
    data = some_items(9)
    model.fit_standardisation(*data)
    config = MultimodalConfig.model_validate_json(model.config.model_dump_json())
    assert config == model.config
    torch.manual_seed(99)
    other = MultimodalModel.from_config(config).eval()
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other(*data), model(*data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": 0}, "outputs"),
        ({"dimensions": {}}, "dimensions"),
        ({"dropout": 1.0}, "dropout"),
        ({"modality_dropout": -0.1}, "modality_dropout"),
        ({"fusion": "none"}, "needs a fusion"),
        ({"fusion": "late", "head_hidden": 3}, "head_hidden must be 0"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MultimodalConfig.model_validate({**CONFIG, **change})


def test_parameters_of_the_fusion_are_checked_with_the_config() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        MultimodalConfig.model_validate({**CONFIG, "fusion": "low_rank", "parameters": {"rank": 0}})
    assert refused.value.param == "parameters.rank"


@pytest.mark.parametrize(
    "config",
    [
        {"fusion": "concat", "head_hidden": 16},
        {"fusion": "gated", "parameters": {"dimension": 16}, "head_hidden": 16},
        {"fusion": "low_rank", "parameters": {"dimension": 16, "rank": 2}},
        {"fusion": "attention", "parameters": {"dimension": 16, "layers": 1}},
    ],
    ids=lambda config: config["fusion"],
)
def test_fusions_learn_what_no_modality_knows_alone(config: dict[str, Any]) -> None:
    """The class is whether two modalities agree in sign: either alone is no better than a coin."""
    generator = torch.Generator().manual_seed(0)
    vectors = {m: torch.randn(400, 2, generator=generator) for m in (TEXT, AUDIO)}
    mask = {m: torch.ones(400, dtype=torch.bool) for m in vectors}
    labels = ((vectors[TEXT][:, 0] > 0) == (vectors[AUDIO][:, 0] > 0)).long()
    base = {"dimensions": {TEXT: 2, AUDIO: 2}, "outputs": 2, "hidden": 16, "dropout": 0.0}
    fused = MultimodalConfig.model_validate({**base, **config})
    assert accuracy(fused, vectors, mask, labels) > 0.85
    assert accuracy(fused.alone(TEXT), vectors, mask, labels) < 0.65


def accuracy(
    config: MultimodalConfig, vectors: dict[Modality, Tensor], mask: dict[Modality, Tensor], labels: Tensor
) -> float:
    """On the last quarter, after training on the rest."""
    torch.manual_seed(1)
    train, test = ([{m: x[part] for m, x in group.items()} for group in (vectors, mask)] for part in
                   (slice(0, 300), slice(300, 400)))  # fmt: skip
    model = MultimodalModel.from_config(config)
    model.fit_standardisation(*train)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(*train), labels[:300]).backward()
        optimiser.step()
    found = model.eval()(*test).argmax(1)
    return (found == labels[300:]).float().mean().item()
