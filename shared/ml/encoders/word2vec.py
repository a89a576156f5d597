"""Word2Vec (Mikolov et al. 2013, skip-gram with negative sampling): fitted on a job's own texts, then an encoder."""

import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from shared.catalog import EncoderSpec
from shared.errors import ItemError, JobError
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.tokenize import tokenize
from shared.preprocessing import TextPreprocessing

VECTORS, _VOCABULARY = "vectors.safetensors", "vocabulary.json"

#: Bounds on memory, far above what most corpora have: words counted at a time, and words kept.
_MAX_COUNTED, _MAX_KEPT = 2_000_000, 200_000

#: The corpus is gone through until this many words were seen, within limits: a small one needs more passes.
_WORDS_SEEN, _MIN_EPOCHS, _MAX_EPOCHS = 1_000_000, 5, 50

#: int32 [words]
WordRows = NDArray[np.int32]


class FitOptions(BaseModel):
    """The catalogue options: how many words either side count as near, and how often a word must occur to be kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(default=5, ge=1, le=100)
    min_count: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Word2VecModel:
    """Words, their vectors (float32 [words, dimension]) and how text was cut into words."""

    words: list[str]
    vectors: Vectors
    preprocessing: TextPreprocessing

    def save(self, folder: Path) -> None:
        """Write `vectors.safetensors` and `vocabulary.json`."""
        from safetensors.numpy import save_file

        save_file({"vectors": self.vectors}, folder / VECTORS)
        vocabulary = {"words": self.words, "preprocessing": self.preprocessing.model_dump(mode="json")}
        (folder / _VOCABULARY).write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote. Raises OSError or ValueError if it is not there or not whole."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        vocabulary = json.loads((folder / _VOCABULARY).read_text("utf-8"))
        try:
            vectors = load_file(folder / VECTORS)["vectors"]
            words, preprocessing = vocabulary["words"], TextPreprocessing(**vocabulary["preprocessing"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"not a Word2Vec model: {error}") from error
        if vectors.ndim != 2 or vectors.shape[0] != len(words):
            raise ValueError(f"{len(words)} words, but vectors of shape {vectors.shape}")
        return cls(words, np.asarray(vectors, np.float32), preprocessing)


def fit(
    texts: Iterable[str],
    *,
    dimension: int,
    seed: int,
    preprocessing: TextPreprocessing,
    options: FitOptions | None = None,
    on_epoch: Callable[[], None] | None = None,
) -> Word2VecModel:
    """Fit word vectors on decoded texts. They are read once, and kept as words in a temporary file, not in memory.

    One thread and the seed make the result the same in every process. After each pass over the words `on_epoch` is
    called; what it raises (cancellation) ends the fit. Raises JobError (`empty_corpus`) if no words are left.
    """
    from gensim.models import Word2Vec

    chosen = options or FitOptions()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as corpus:
        count = _write_words(texts, preprocessing, corpus)
        model = Word2Vec(
            vector_size=dimension, window=chosen.window, min_count=chosen.min_count, seed=seed, sg=1, workers=1,
            hashfxn=_stable_hash, max_vocab_size=_MAX_COUNTED, max_final_vocab=_MAX_KEPT,
        )  # fmt: skip
        model.build_vocab(corpus_file=corpus.name)
        if not model.wv.index_to_key:
            raise JobError("Word2Vec cannot be fitted: the texts have too few words.", code="empty_corpus")
        model.train(
            corpus_file=corpus.name,
            total_examples=model.corpus_count,
            total_words=model.corpus_total_words,
            epochs=min(max(_WORDS_SEEN // count, _MIN_EPOCHS), _MAX_EPOCHS),
            callbacks=_epoch_callbacks(on_epoch),
        )
    return Word2VecModel(list(model.wv.index_to_key), np.asarray(model.wv.vectors, np.float32), preprocessing)


class Word2VecEncoder:
    """The mean of the vectors of a text's words; words that were not in the corpus are passed over."""

    def __init__(self, spec: EncoderSpec, source: Path | None, *_: object):
        if source is None:
            raise JobError(
                f"{spec.id} is fitted on a job's own texts; by itself it has no vectors.", code="encoder_unavailable"
            )
        try:
            model = Word2VecModel.load(source)
        except (OSError, ValueError) as error:
            raise JobError(f"The encoder {spec.id} cannot be loaded: {error}.", code="encoder_invalid") from error
        self.spec = spec
        self.decode_options: dict[str, Any] = {}
        self.dimension = int(model.vectors.shape[1])
        self.fingerprint = fingerprint_of(digest_of([source / VECTORS, source / _VOCABULARY]), "float32", {})
        self._vectors = model.vectors
        self._preprocessing = model.preprocessing
        self._row_of = {word: row for row, word in enumerate(model.words)}

    def preprocess(self, media: Media) -> WordRows:
        """Text to the rows of its known words, int32 [words].

        Raises ItemError (`no_known_words`) if there are none: a vector of zeros would pass for a meaning.
        """
        words = tokenize(str(media), self._preprocessing)
        rows = [self._row_of[word] for word in words if word in self._row_of]
        if not rows:
            raise ItemError("The text has no word that was in the corpus.", code="no_known_words")
        return np.array(rows, np.int32)

    def cost(self, prepared: WordRows) -> int:
        """Words."""
        return len(prepared)

    def encode(self, batch: Sequence[WordRows]) -> Vectors:
        """Word rows to float32 [len(batch), dimension]."""
        return np.stack([self._vectors[rows].mean(axis=0) for rows in batch])


def _write_words(texts: Iterable[str], preprocessing: TextPreprocessing, file: IO[str]) -> int:
    """Write the words of a text on a line, with spaces between; returns how many there were."""
    count = 0
    for text in texts:
        words = tokenize(text, preprocessing)
        count += len(words)
        file.write(" ".join(words) + "\n")
    file.flush()
    return count


def _stable_hash(word: str) -> int:
    """Unlike hash(), the same in every process."""
    return zlib.crc32(word.encode())


def _epoch_callbacks(on_epoch: Callable[[], None] | None) -> list[Any]:
    from gensim.models.callbacks import CallbackAny2Vec

    class OnEpoch(CallbackAny2Vec):  # type: ignore[misc]  # gensim has no types
        def on_epoch_end(self, _model: Any) -> None:
            if on_epoch is not None:
                on_epoch()

    return [OnEpoch()]
