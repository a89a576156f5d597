"""Word2Vec: fitted on a job's texts, the same in every process, saved without pickle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gensim.models import Word2Vec

from shared.catalog import EncoderSpec
from shared.errors import ItemError, JobError, ShardCancelledError
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.batching import encode_all
from shared.ml.encoders.loading import load_encoder
from shared.ml.encoders.word2vec import FitOptions, Word2VecModel, fit
from shared.preprocessing import TextPreprocessing

TEXTS = [
    *(f"The {animal} sleeps in the {place} all day." for animal in ("cat", "dog") for place in ("house", "garden")),
    *(f"A {metal} price rises on the {market} market" for metal in ("gold", "silver") for market in ("stock", "world")),
    "我来到北京清华大学",
] * 5
PLAIN = TextPreprocessing()

FIT_IN_A_PROCESS = """
import sys
from pathlib import Path
from shared.ml.encoders.word2vec import fit
from shared.preprocessing import TextPreprocessing
texts = Path(sys.argv[1]).read_text("utf-8").splitlines()
fit(texts, dimension=12, seed=int(sys.argv[3]), preprocessing=TextPreprocessing()).save(Path(sys.argv[2]))
"""


def load(folder: Path, dimension: int = 12) -> Encoder:
    spec = EncoderSpec(id="word2vec", modality="text", dimension=dimension, loader="word2vec", fitted=True)
    return load_encoder(spec, model_path=folder)


@pytest.fixture(scope="module")
def model() -> Word2VecModel:
    return fit(TEXTS, dimension=12, seed=3, preprocessing=PLAIN)


@pytest.fixture
def encoder(model: Word2VecModel, tmp_path: Path) -> Encoder:
    model.save(tmp_path)
    return load(tmp_path)


def test_vectors_are_what_gensim_computes(model: Word2VecModel, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    lines = [
        *(f"the {a} sleeps in the {p} all day" for a in ("cat", "dog") for p in ("house", "garden")),
        *(f"a {a} price rises on the {p} market" for a in ("gold", "silver") for p in ("stock", "world")),
        "我 来到 北京 清华大学",
    ] * 5
    corpus.write_text("\n".join(lines) + "\n", "utf-8")
    reference = Word2Vec(
        corpus_file=str(corpus), vector_size=12, window=5, min_count=1, sg=1, workers=1, seed=3, epochs=50
    )
    for word, vector in zip(model.words, model.vectors, strict=True):
        np.testing.assert_allclose(vector, reference.wv[word], atol=1e-4)


def test_a_text_is_the_mean_of_its_known_words(model: Word2VecModel, encoder: Encoder) -> None:
    vector_of = dict(zip(model.words, model.vectors, strict=True))
    texts = {
        "A silver DOG!": ["a", "silver", "dog"],
        "unheard of gold": ["gold"],
        "北京 the the": ["北京", "the", "the"],
    }
    vectors, errors = encode_all(encoder, [encoder.preprocess(text) for text in texts])
    expected = [np.mean([vector_of[word] for word in words], axis=0) for words in texts.values()]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32
    assert not errors


@pytest.mark.parametrize("text", ["quite different", "!!!", ""])
def test_a_text_without_known_words_is_an_error_of_its_item(encoder: Encoder, text: str) -> None:
    with pytest.raises(ItemError) as caught:
        encoder.preprocess(text)
    assert caught.value.error_code == "no_known_words"


def test_every_process_fits_the_same_vectors(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\n".join(TEXTS), "utf-8")
    fingerprints = []
    for hash_seed, seed in (("0", "3"), ("12345", "3"), ("0", "4")):
        folder = tmp_path / f"{hash_seed}-{seed}"
        folder.mkdir()
        arguments = [sys.executable, "-c", FIT_IN_A_PROCESS, str(tmp_path / "texts"), str(folder), seed]
        subprocess.run(arguments, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True)
        fingerprints.append(load(folder).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


def test_saving_keeps_everything_without_pickle(model: Word2VecModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = Word2VecModel.load(tmp_path)
    assert loaded.words == model.words
    assert loaded.preprocessing == model.preprocessing
    assert loaded.vectors.tobytes() == model.vectors.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.safetensors", "vocabulary.json"]


def test_the_encoder_cuts_words_as_the_fit_did(tmp_path: Path) -> None:
    no_stop_words = TextPreprocessing(stop_words=("en",))
    fit(TEXTS, dimension=12, seed=3, preprocessing=no_stop_words).save(tmp_path)
    encoder = load(tmp_path)
    assert encoder.cost(encoder.preprocess("the cat and the dog")) == 2
    assert "the" not in Word2VecModel.load(tmp_path).words


def test_texts_may_be_a_stream_that_is_read_only_once(model: Word2VecModel) -> None:
    streamed = fit(iter(TEXTS), dimension=12, seed=3, preprocessing=PLAIN)
    assert streamed.vectors.tobytes() == model.vectors.tobytes()


def test_all_of_a_very_long_text_is_learned_from() -> None:
    words = [f"w{i % 500}" for i in range(12_000)]
    whole = fit([" ".join(words)], dimension=2, seed=1, preprocessing=PLAIN)
    in_two = fit([" ".join(words[:10_000]), " ".join(words[10_000:])], dimension=2, seed=1, preprocessing=PLAIN)
    assert whole.vectors.tobytes() == in_two.vectors.tobytes()


@pytest.mark.parametrize(("texts", "min_count"), [([], 1), (["", "?!"], 1), (["each word once"], 2)])
def test_a_corpus_without_words_ends_the_job(texts: list[str], min_count: int) -> None:
    with pytest.raises(JobError) as caught:
        fit(texts, dimension=4, seed=1, preprocessing=PLAIN, options=FitOptions(min_count=min_count))
    assert caught.value.error_code == "empty_corpus"


def test_cancelling_ends_the_fit_after_a_pass() -> None:
    passes = 0

    def cancel() -> None:
        nonlocal passes
        passes += 1
        raise ShardCancelledError("cancelled")

    with pytest.raises(ShardCancelledError):
        fit(TEXTS, dimension=4, seed=1, preprocessing=PLAIN, on_epoch=cancel)
    assert passes == 1


def test_what_was_not_fitted_or_is_broken_cannot_be_loaded(model: Word2VecModel, tmp_path: Path) -> None:
    spec = EncoderSpec(id="word2vec", modality="text", dimension=12, loader="word2vec", fitted=True)
    with pytest.raises(JobError) as caught:
        load_encoder(spec)
    assert caught.value.error_code == "encoder_unavailable"
    model.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocabulary.json").read_text("utf-8"))
    for broken in ({**vocabulary, "words": vocabulary["words"][1:]}, {"words": vocabulary["words"]}, "{"):
        (tmp_path / "vocabulary.json").write_text(broken if isinstance(broken, str) else json.dumps(broken), "utf-8")
        with pytest.raises(JobError) as caught:
            load(tmp_path)
        assert caught.value.error_code == "encoder_invalid"
