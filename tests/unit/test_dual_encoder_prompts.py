"""Classifiers of dual encoders: zero-shot as plain CLIP computes it, prompt search, and learned context (CoOp)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.finetune.data import Dataset
from services.finetune.prompting.context import CONTEXT, PromptedTower
from services.finetune.prompting.dual import class_vectors
from services.finetune.prompting.pretrained import Pretrained
from services.finetune.recipes import Outcome, fine_tune
from shared.catalog import Catalog, EncoderSpec, text_tower
from shared.errors import InvalidRequestError
from shared.language_tuning import ContextTraining, PromptRequest
from shared.ml.encoders.loading import load_encoder, load_trainable
from shared.ml.trained import TrainedModel
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.testing.tiny import tiny_clip
from tests.unit.finetune_data import Outside, Stopped, dataset, without_times

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["cat", "dog", "park"]
TEMPLATES = ["a {label}", "the {label} runs"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderSpec, EncoderSpec]:
    """The text and the image tower of one tiny CLIP."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def data(towers: tuple[EncoderSpec, EncoderSpec]) -> Dataset:
    """Pictures whose vectors lie around what CLIP makes of their class's name; some have no label."""
    encoder = load_encoder(towers[0], device="cpu", precision="fp32")
    centres = encoder.encode([encoder.preprocess(f"a {name}") for name in NAMES])
    rng = np.random.default_rng(0)
    which = rng.integers(len(NAMES), size=150)
    spread = 0.6 * (centres - centres.mean(axis=0)).std()
    vectors = centres[which] + spread * rng.normal(size=(150, centres.shape[1]))
    labels = [[NAMES[c]] if i % 10 else [] for i, c in enumerate(which)]
    return dataset({Modality.IMAGE: vectors}, labels)


def request(**options: Any) -> PromptRequest:
    given = {"type": "fine_tune", "method": "prompt", "features": "job-x", **options}
    return PromptRequest.model_validate(given)


def run(
    data: Dataset, towers: tuple[EncoderSpec, EncoderSpec], outside: Outside | None = None, **options: Any
) -> Outcome:
    models = Pretrained(
        text_tower=lambda: load_encoder(towers[0], device="cpu", precision="fp32"),
        trainable_text_tower=lambda: load_trainable(towers[0], device="cpu"),
        language_model=pytest.fail,
    )
    return fine_tune(data, request(**options), outside or Outside(), device="cpu", models=models)


def plain_clip(towers: tuple[EncoderSpec, EncoderSpec], vectors: np.ndarray[Any, Any], scale: float) -> Any:
    """Probabilities [n, classes] by transformers alone: the mean of the templates' unit vectors, as in CLIP's paper."""
    import transformers

    folder = towers[0].source
    model: Any = transformers.CLIPModel.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    weights = []
    for name in NAMES:
        texts = tokenizer([t.format(label=name) for t in TEMPLATES], padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model.get_text_features(**texts).pooler_output
        mean = (found / found.norm(dim=-1, keepdim=True)).mean(0)
        weights.append(mean / mean.norm())
    items = torch.from_numpy(vectors)
    items = items / items.norm(dim=-1, keepdim=True)
    return (scale * items @ torch.stack(weights).T).softmax(-1).numpy()


def test_zero_shot_is_what_clip_says(towers: tuple[EncoderSpec, EncoderSpec], data: Dataset) -> None:
    made = run(data, towers, prompt={"class_templates": TEMPLATES}, scale=20)
    model = TrainedModel.load(made.files)
    assert model.config.classes == NAMES
    vectors = data.vectors[Modality.IMAGE]
    ours = model.outputs({Modality.IMAGE: vectors}, data.present)
    np.testing.assert_allclose(ours, plain_clip(towers, vectors, 20), atol=1e-5)
    assert made.kind == "classifier"
    assert made.metrics["method"] == "prompt"
    assert made.metrics["test"]["accuracy"] > 0.5  # by chance a third


def test_modalities_of_one_space_add_up_and_a_missing_one_counts_for_nothing(
    towers: tuple[EncoderSpec, EncoderSpec], data: Dataset
) -> None:
    """Captions beside the pictures, by the same text tower."""
    encoder = load_encoder(towers[0], device="cpu", precision="fp32")
    captions = encoder.encode([encoder.preprocess((labels or ["house"])[0]) for labels in data.labels])
    both = {Modality.TEXT: captions, Modality.IMAGE: data.vectors[Modality.IMAGE]}
    there = np.arange(len(data)) % 3 != 0
    items = dataset(both, data.labels, present={Modality.TEXT: there, Modality.IMAGE: np.ones(len(data), np.bool_)})
    made = run(items, towers, prompt={"class_templates": TEMPLATES}, scale=20)
    model = TrainedModel.load(made.files)
    alone = TrainedModel.load(run(data, towers, prompt={"class_templates": TEMPLATES}, scale=20).files)
    ours = model.outputs(both, items.present)
    np.testing.assert_allclose(ours[~there], alone.outputs(data.vectors, data.present)[~there], atol=1e-6)
    product = plain_clip(towers, captions, 20) * plain_clip(towers, both[Modality.IMAGE], 20)
    np.testing.assert_allclose(ours[there], (product / product.sum(1, keepdims=True))[there], atol=1e-4)


def test_the_prompt_that_is_best_on_validation_items_is_kept(
    towers: tuple[EncoderSpec, EncoderSpec], data: Dataset
) -> None:
    """Of one whose names are mixed up and one that fits, this one; all are listed with their scores."""
    mixed = {"cat": ["park"], "dog": ["cat"], "park": ["dog"]}
    outside = Outside()
    fitting = {"class_templates": ["a {label}"]}
    made = run(data, towers, outside, prompts=[{**fitting, "verbalizers": mixed}, fitting])
    tried = made.metrics["prompts"]
    assert [t["chosen"] for t in tried] == [True, False]
    assert "verbalizers" not in tried[0]["prompt"]
    assert tried[0]["validation_score"] > 0.9 > 0.5 > tried[1]["validation_score"]
    assert made.metrics["test"]["accuracy"] > 0.9
    assert sum(kind == "trial" for kind, _ in outside.events) == 2
    card = made.files["README.md"].decode()
    assert "## Prompts" in card
    assert "mixed" not in card
    assert json.dumps(mixed) in card
    assert json.loads(made.files["metrics.json"])["prompts"] == tried


def test_context_lowers_the_loss_and_leaves_the_tower_as_it_is(
    towers: tuple[EncoderSpec, EncoderSpec], data: Dataset
) -> None:
    """Names that say nothing are told apart by what is learned before them; frozen weights stay bit for bit."""
    encoder: Any = load_trainable(towers[0], device="cpu")
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    models = Pretrained(text_tower=pytest.fail, trainable_text_tower=lambda: encoder, language_model=pytest.fail)
    asked = request(how="context", scale=10, context={"epochs": 8, "batch_size": 16})
    made = fine_tune(data, asked, Outside(), device="cpu", models=models)
    for name, tensor in encoder.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    curve = json.loads(made.files["metrics.json"])["curves"]["context"]
    assert curve[-1]["train_loss"] < 0.8 * curve[0]["train_loss"]
    assert made.metrics["candidates"][0]["validation_loss"] <= curve[0]["validation_loss"]
    assert CONTEXT in made.files
    model = TrainedModel.load(made.files)
    assert set(model.config.classes) == set(NAMES)


def test_learning_a_context_goes_on_as_if_it_had_never_been_stopped(
    towers: tuple[EncoderSpec, EncoderSpec], data: Dataset
) -> None:
    options: dict[str, Any] = {"how": "context", "context": {"epochs": 4}}
    whole = run(data, towers, **options)
    stopped = Outside(stop_at=9)
    with pytest.raises(Stopped):
        run(data, towers, stopped, **options)
    resumed = run(data, towers, Outside(saved=stopped.saved), **options)
    assert resumed.files["model.safetensors"] == whole.files["model.safetensors"]
    assert without_times(resumed.metrics) == without_times(whole.metrics)


def test_a_context_of_words_is_what_the_words_are(towers: tuple[EncoderSpec, EncoderSpec]) -> None:
    """Before anything is learned, `a red` as context and `red` in the template give the same vectors."""
    torch.manual_seed(0)
    encoder: Any = load_trainable(towers[0], device="cpu")
    tower = PromptedTower(encoder, NAMES, ContextTraining(words="the red"))
    plain = class_vectors(encoder, PromptTemplate(class_templates=["the red {label}"]), NAMES)
    np.testing.assert_allclose(tower().detach().numpy(), plain, atol=1e-6)


def test_towers_must_be_of_one_model(towers: tuple[EncoderSpec, EncoderSpec], tmp_path: Path) -> None:
    text, image = towers
    stranger = text.model_copy(update={"id": "stranger", "source": "elsewhere"})
    pooled = image.model_copy(update={"id": "pooled", "options": {}})
    catalog = Catalog([stranger, text, image, pooled])
    assert text_tower(catalog, {Modality.IMAGE: image}, None) == text
    for specs, wanted, param in (
        ({Modality.IMAGE: image}, "stranger", "text_encoder"),
        ({Modality.IMAGE: pooled}, None, "encoders.image"),
        ({}, None, "encoders"),
    ):
        with pytest.raises(InvalidRequestError) as raised:
            text_tower(catalog, specs, wanted)
        assert (raised.value.error_code, raised.value.param) == ("unsuitable_encoder", param)
