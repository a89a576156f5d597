"""Zero-shot with a language model: likelihoods as a plain loop has them, calibration as in the paper, prompt search."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from services.finetune.language.data import Conversations
from services.finetune.prompting.pretrained import Pretrained
from services.finetune.recipes import Outcome, fine_tune
from shared.errors import JobError
from shared.language_tuning import PromptRequest
from shared.ml.language.choosing import CONTENT_FREE, calibrate, calibrated, label_probabilities
from shared.ml.language.generate import Prompted
from shared.ml.language.loading import load_language_model
from shared.ml.language.tuned import CONFIG, TunedConfig, TunedLanguageModel
from shared.prompts import PromptTemplate
from shared.testing.tiny import tiny_language_model
from tests.unit.finetune_data import Outside, dataset

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {"good": ["yes", "sure"], "bad": ["no"]}
TEMPLATE = PromptTemplate(template="Is it good? {text}", verbalizers=WORDS)
LABELS = ["bad", "good"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TunedLanguageModel:
    """A tiny language model as it is."""
    spec = tiny_language_model(tmp_path_factory.mktemp("lm"))
    return TunedLanguageModel.plain(load_language_model(spec, device="cpu", precision="fp32"))


def plain(model: TunedLanguageModel, text: str, template: PromptTemplate = TEMPLATE) -> Any:
    """p of each label [labels]: transformers alone, each prompt with each word in a pass of its own."""
    encoded = model.encode(template.question(text, []), [])
    network, tokenizer = model.base.model, model.base.tokenizer
    said = {}
    for word in (word for label in LABELS for word in template.words_for(label)):
        ids = tokenizer.words(word)
        with torch.no_grad():
            logits = network(torch.tensor([[*encoded.ids, *ids]])).logits[0].double().log_softmax(-1)
        begin = len(encoded.ids)
        said[word] = sum(float(logits[begin + i - 1, id]) for i, id in enumerate(ids))
    each = np.array([sum(np.exp(said[word]) for word in template.words_for(label)) for label in LABELS])
    return each / each.sum()


def test_labels_are_as_likely_as_a_plain_loop_says(model: TunedLanguageModel) -> None:
    texts = ["a", "the sun shines", "Ünïcödé 雨"]
    ours = label_probabilities(model, [Prompted(TEMPLATE.question(t, [])) for t in texts], TEMPLATE, LABELS)
    np.testing.assert_allclose(ours, [plain(model, t) for t in texts], rtol=1e-4)


def test_calibration_is_that_of_the_paper(model: TunedLanguageModel) -> None:
    """q = softmax(W·p), W = diag(p_cf)⁻¹: ours is W·p scaled to 1, and of an input that says nothing it is even."""
    free = np.mean([plain(model, text) for text in CONTENT_FREE], axis=0)
    np.testing.assert_allclose(calibrate(model, TEMPLATE, LABELS), free, rtol=1e-4)
    p = plain(model, "the sun shines")
    ours = label_probabilities(
        model, [Prompted(TEMPLATE.question("the sun shines", []))], TEMPLATE, LABELS, calibration=free.tolist()
    )[0]
    by_matrix = np.linalg.inv(np.diag(free)) @ p
    np.testing.assert_allclose(ours, by_matrix / by_matrix.sum(), rtol=1e-4)
    np.testing.assert_allclose(calibrated(free[None], free), [[0.5, 0.5]])


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)), min_size=2, max_size=6))
def test_calibrated_labels_are_in_the_order_of_the_paper(pairs: list[tuple[float, float]]) -> None:
    p, free = np.array(pairs).T / np.array(pairs).sum(axis=0)[:, None]
    ours, theirs = calibrated(p[None], free)[0], softmax(np.diag(1 / free) @ p)
    assert ours.sum() == pytest.approx(1)
    assert theirs[ours.argmax()] == pytest.approx(theirs.max())


def conversations(model: TunedLanguageModel, count: int = 40) -> Conversations:
    """Texts labelled with what the model itself says of them under TEMPLATE, so that this prompt is always right."""
    texts: list[str | None] = [f"{'abcdefgh'[i % 8]} {i}" for i in range(count)]
    free = calibrate(model, TEMPLATE, LABELS)
    prompts = [Prompted(TEMPLATE.question(t, [])) for t in texts]
    said = label_probabilities(model, prompts, TEMPLATE, LABELS, calibration=free.tolist()).argmax(axis=1)
    items = dataset({}, [[LABELS[place]] for place in said], count=count)
    return Conversations(items, texts, [None] * count, [None] * count)


def run(model: TunedLanguageModel, data: Conversations, outside: Outside | None = None, **options: Any) -> Outcome:
    given = {"type": "fine_tune", "method": "prompt", "features": "job-x", "language_model": "tiny", **options}
    models = Pretrained(text_tower=pytest.fail, trainable_text_tower=pytest.fail, language_model=lambda: model)
    request = PromptRequest.model_validate(given)
    return fine_tune(data, request, outside or Outside(), device="cpu", models=models)


def test_the_best_prompt_is_found_and_kept(model: TunedLanguageModel, tmp_path: Path) -> None:
    data = conversations(model)
    assert len({labels[0] for labels in data.items.labels}) == 2
    swapped = {"template": TEMPLATE.template, "verbalizers": {"good": ["no"], "bad": ["yes", "sure"]}}
    right = TEMPLATE.model_dump(mode="json")
    outside = Outside()
    made = run(model, data, outside, prompts=[swapped, right])
    assert made.metrics["test"]["accuracy"] == 1.0
    assert [t["chosen"] for t in made.metrics["prompts"]] == [True, False]
    assert made.metrics["prompts"][0]["prompt"]["verbalizers"] == WORDS
    assert made.metrics["prompts"][1]["validation_score"] < 0.5
    config = TunedConfig.model_validate_json(made.files[CONFIG])
    assert (config.prompt, config.labels) == (TEMPLATE, LABELS)
    np.testing.assert_allclose(config.calibration, calibrate(model, TEMPLATE, LABELS))
    assert TunedLanguageModel.load(made.files, model.base).config == config
    assert "## Prompts" in made.files["README.md"].decode()
    lines = [json.loads(line) for line in made.files["test_items.jsonl"].splitlines()]
    assert all(line["label"] == line["prediction"] for line in lines)
    assert len(lines) == made.metrics["items"]["test"]
    assert [kind for kind, _ in outside.events].count("trial") == 2


def test_without_labels_there_is_nothing_to_choose(model: TunedLanguageModel) -> None:
    data = conversations(model, 12)
    data.items.labels[:] = [[]] * 12
    data.targets[:] = ["x"] * 12
    with pytest.raises(JobError) as raised:
        run(model, data)
    assert raised.value.error_code == "no_labels"
