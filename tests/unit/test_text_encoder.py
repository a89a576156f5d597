"""Text encoders against what the libraries compute themselves: within 1e-4 in fp32."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from shared.catalog import load_catalog
from shared.errors import ItemError, JobError
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.batching import encode_all
from shared.ml.encoders.loading import load_encoder, resolve_source
from shared.ml.torchvision_shim import make_torchvision_importable

TEXTS = [
    "A dog runs through the park.",
    "dogs",
    "The stock market fell sharply on Monday, after weeks of gains that few had expected to last.",
    "机器学习 and naïve café",
    "word " * 600,
    "\x07 bell",
]
WORDS = ["dog", "cat", "runs", "sleeps", "the", "a", "park", "house", "red", "blue"]


@pytest.fixture(scope="module", autouse=True)
def _transformers() -> None:
    make_torchvision_importable()


def encode(encoder: Encoder, texts: list[str], **limits: int) -> Vectors:
    vectors, errors = encode_all(encoder, [encoder.preprocess(text) for text in texts], **limits)
    assert not errors
    return vectors


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load_encoder(load_catalog()["all-minilm-l6-v2"], device="cpu", precision="fp32")


def test_default_encoder_is_what_sentence_transformers_computes(minilm: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(resolve_source(minilm.spec)), device="cpu")
    expected = reference.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(encode(minilm, TEXTS), expected, atol=1e-4)


def test_batches_do_not_change_vectors(minilm: Encoder) -> None:
    alone = encode(minilm, TEXTS, max_items=1)
    together = encode(minilm, TEXTS, max_cost=100_000)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_bf16_stays_close_and_has_its_own_fingerprint(minilm: Encoder) -> None:
    bf16 = load_encoder(minilm.spec, device="cpu", precision="bf16")
    cosine = (encode(bf16, TEXTS) * encode(minilm, TEXTS)).sum(axis=1)
    assert cosine.min() >= 0.9995
    assert bf16.fingerprint != minilm.fingerprint


def test_preprocessing_is_the_same_from_many_threads(minilm: Encoder) -> None:
    texts = [f"{text} {i}" for i in range(50) for text in TEXTS]
    expected = [minilm.preprocess(text).tolist() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [ids.tolist() for ids in pool.map(minilm.preprocess, texts)] == expected


def test_long_text_is_cut_to_the_models_length_whatever_follows(minilm: Encoder) -> None:
    start = "several perfectly ordinary words " * 80
    ids = minilm.preprocess(start)
    assert minilm.cost(ids) == 256
    assert minilm.preprocess(start + "x" * 500_000).tolist() == ids.tolist()
    sparse = " " * 20_000 + "late words"
    assert minilm.preprocess(sparse).tolist() == minilm.preprocess("late words").tolist()


@pytest.mark.parametrize("text", ["", "  \n\t", "\x00\x01"])
def test_text_without_content_is_an_error_of_its_item(minilm: Encoder, text: str) -> None:
    with pytest.raises(ItemError) as caught:
        minilm.preprocess(text)
    assert caught.value.error_code == "empty_text"


# --- models made on the spot ---


def _save_tokenizer(folder: Path, special: dict[str, str], **more: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*special.values(), *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = special.get("cls_token") or special["bos_token"], special.get("sep_token") or special["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **more).save_pretrained(folder)


BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
CLIP_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=20, max_position_embeddings=24, **SIZES)).save_pretrained(folder)
    _save_tokenizer(folder, BERT_TOKENS)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    text = {"vocab_size": 20, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    vision = {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text | SIZES, vision_config=vision | SIZES, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    _save_tokenizer(folder, CLIP_TOKENS)
    return folder


@pytest.fixture
def from_catalog(tmp_path: Path) -> Callable[..., Encoder]:
    """Loads a model folder the way a user adds one: by an entry in an encoders file."""

    def load(folder: Path, dimension: int, **options: Any) -> Encoder:
        entry = {"id": "mine", "modality": "text", "dimension": dimension, "loader": "transformers"}
        file = tmp_path / "encoders.json"
        file.write_text(json.dumps([entry | {"source": str(folder), "options": options}]))
        return load_encoder(load_catalog(file)["mine"], device="cpu", precision="fp32")

    return load


SENTENCES = ["the dog runs", "A red cat sleeps in the blue house", "dog", "the cat the dog the park"]


def _bert_directly(folder: Path, text: str, pooling: str) -> Vectors:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"))
    tokens = output.last_hidden_state[0].numpy()
    return {"cls": tokens[0], "mean": tokens.mean(axis=0), "pooler": output.pooler_output[0].numpy()}[pooling]


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@pytest.mark.parametrize("normalize", [False, True])
def test_bert_is_what_transformers_computes(
    bert_folder: Path, from_catalog: Callable[..., Encoder], pooling: str, normalize: bool
) -> None:
    encoder = from_catalog(bert_folder, 16, pooling=pooling, normalize=normalize)
    expected = np.stack([_bert_directly(bert_folder, text, pooling) for text in SENTENCES])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(encoder, SENTENCES), expected, atol=1e-4)


def test_prefix_goes_before_every_text(bert_folder: Path, from_catalog: Callable[..., Encoder]) -> None:
    prefixed = from_catalog(bert_folder, 16, prefix="the red ")
    expected = np.stack([_bert_directly(bert_folder, f"the red {text}", "mean") for text in SENTENCES])
    np.testing.assert_allclose(encode(prefixed, SENTENCES), expected, atol=1e-4)


def test_clip_text_is_what_transformers_computes(clip_folder: Path, from_catalog: Callable[..., Encoder]) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = from_catalog(clip_folder, 8, pooling="clip")
    model, tokenizer = AutoModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    with torch.no_grad():
        expected = [model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output for text in SENTENCES]
    np.testing.assert_allclose(encode(encoder, SENTENCES), torch.cat(expected).numpy(), atol=1e-4)
    assert encoder.cost(encoder.preprocess("dog " * 50)) == 12


def test_roberta_counts_positions_from_its_padding_id(tmp_path: Path, from_catalog: Callable[..., Encoder]) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=20, max_position_embeddings=24, pad_token_id=0, **SIZES)
    RobertaModel(config).save_pretrained(tmp_path)
    _save_tokenizer(tmp_path, BERT_TOKENS)
    encoder = from_catalog(tmp_path, 16, pooling="mean")
    assert encoder.cost(encoder.preprocess("dog " * 50)) == 23
    assert np.isfinite(encode(encoder, ["dog " * 50, "cat"])).all()


def test_fingerprint_follows_weights_and_options(
    bert_folder: Path, from_catalog: Callable[..., Encoder], tmp_path: Path
) -> None:
    from transformers import AutoModel

    first = from_catalog(bert_folder, 16, pooling="mean").fingerprint
    assert from_catalog(bert_folder, 16, pooling="mean").fingerprint == first
    assert from_catalog(bert_folder, 16, pooling="cls").fingerprint != first
    assert from_catalog(bert_folder, 16, pooling="mean", max_length=8).fingerprint != first
    other = tmp_path / "other"
    model = AutoModel.from_pretrained(bert_folder)
    torch.nn.init.zeros_(model.embeddings.word_embeddings.weight)
    model.save_pretrained(other)
    _save_tokenizer(other, BERT_TOKENS)
    assert from_catalog(other, 16, pooling="mean").fingerprint != first


@pytest.mark.parametrize(
    ("dimension", "options", "words"),
    [
        (17, {}, "vectors have 16"),
        (16, {"pooling": "clip"}, "no dual encoder"),
        (16, {"pooling": "max"}, "pooling"),
        (16, {"poling": "cls"}, "poling"),
    ],
)
def test_an_entry_that_does_not_fit_its_model_says_so(
    bert_folder: Path, from_catalog: Callable[..., Encoder], dimension: int, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words) as caught:
        from_catalog(bert_folder, dimension, **options)
    assert caught.value.error_code == "encoder_invalid"


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, from_catalog: Callable[..., Encoder]) -> None:
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig(vocab_size=20, **SIZES)).save_pretrained(tmp_path)
    _save_tokenizer(tmp_path, BERT_TOKENS)
    assert from_catalog(tmp_path, 16, pooling="mean").dimension == 16
    with pytest.raises(JobError, match=r"lacks weights .* pooler\."):
        from_catalog(tmp_path, 16, pooling="pooler")


def test_pickled_weights_are_refused(bert_folder: Path, tmp_path: Path, from_catalog: Callable[..., Encoder]) -> None:
    for file in bert_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(JobError, match="no safetensors weights") as caught:
        from_catalog(tmp_path, 16)
    assert caught.value.error_code == "encoder_invalid"


def test_code_that_comes_with_a_model_is_not_run(
    bert_folder: Path, tmp_path: Path, from_catalog: Callable[..., Encoder]
) -> None:
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(JobError) as caught:
        from_catalog(tmp_path, 16)
    assert caught.value.error_code == "encoder_invalid"
    assert not marker.exists()
