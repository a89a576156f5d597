"""Cleans text and cuts it into words, English and Chinese: for text preprocessing, and for encoders that read words."""

import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from shared.preprocessing import Language, TextPreprocessing

_HAN_RUN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_KANA = re.compile("[\u3040-\u30ff]")

#: Letters, then letters and digits, with apostrophes inside; or a number with points and commas inside.
_WORD = re.compile(r"[^\W\d_][^\W_]*(?:['’][^\W\d_]+)*|\d+(?:[.,]\d+)*")

_jieba_lock = threading.Lock()


def clean(text: str, options: TextPreprocessing) -> str:
    """`text` after Unicode normalisation, lower-casing and removal of stop words, as far as `options` ask for them.

    A removed word leaves a space, so that its neighbours do not become one word; white space is collapsed only then.
    """
    if options.normalization != "none":
        text = unicodedata.normalize(options.normalization, text)
    if options.lowercase:
        text = text.lower()
    return _without_stop_words(text, options) if options.stop_words else text


def tokenize(text: str, options: TextPreprocessing) -> list[str]:
    """The words of `text` after `clean`, lower-cased, without punctuation."""
    cleaned = clean(text, options)
    return [_folded(cleaned[start:end]) for start, end in _word_spans(cleaned, options)]


def detect_language(text: str) -> Language:
    """The language whose way of cutting words suits the script: `zh` for Han characters without kana, else `en`."""
    return "zh" if _HAN_RUN.search(text) and not _KANA.search(text) else "en"


def _without_stop_words(text: str, options: TextPreprocessing) -> str:
    stop_words = frozenset[str]().union(*(_stop_words(language) for language in options.stop_words))
    kept, position = [], 0
    for start, end in _word_spans(text, options):
        if _folded(text[start:end]) in stop_words:
            kept.append(text[position:start])
            position = end
    kept.append(text[position:])
    return " ".join(" ".join(kept).split())


def _word_spans(text: str, options: TextPreprocessing) -> Iterator[tuple[int, int]]:
    """Start and end of each word."""
    language = detect_language(text) if options.language == "auto" else options.language
    if language == "en":
        yield from (word.span() for word in _WORD.finditer(text))
        return
    position = 0
    for run in _HAN_RUN.finditer(text):
        yield from (word.span() for word in _WORD.finditer(text, position, run.start()))
        position = run.start()
        for word in _chinese().cut(run.group()):
            yield position, position + len(word)
            position += len(word)
    yield from (word.span() for word in _WORD.finditer(text, position))


def _folded(word: str) -> str:
    return word.lower().replace("’", "'")


@cache
def _stop_words(language: Language) -> frozenset[str]:
    return frozenset(resources.files("shared.ml").joinpath(f"stop_words/{language}.txt").read_text("utf-8").split())


def _chinese() -> Any:
    """jieba's tokenizer with its own dictionary."""
    with _jieba_lock:  # a cache alone would let two threads read the dictionary at once
        return _load_jieba()


@cache
def _load_jieba() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has invalid escape sequences
        import jieba
    tokenizer = jieba.Tokenizer()
    # Its own initialisation trusts, or writes, a cache file in the shared temporary folder. This takes the same second.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
