"""Untrusted bytes to clean text. Cheap to import: no torch, and jieba only when Chinese words are cut."""

from typing import Any

from shared.errors import ItemError
from shared.ml.tokenize import clean, tokenize
from shared.preprocessing import TextPreprocessing

__all__ = ["decode", "tokenize"]

_DEFAULT_MAX_BYTES = 1024**2


def decode(data: bytes | str, options: dict[str, Any]) -> str:
    """Bytes of UTF-8, or a string, to clean text. A byte order mark is dropped.

    Options: `max_bytes` (limit on the UTF-8) and the fields of TextPreprocessing; others are not looked at.
    Raises ItemError: `text_too_large`, `corrupt_media` (not UTF-8) or `empty_text`.
    """
    max_bytes = int(options.get("max_bytes", _DEFAULT_MAX_BYTES))
    chosen = TextPreprocessing.model_validate({k: v for k, v in options.items() if k in TextPreprocessing.model_fields})
    try:
        encoded = data.encode() if isinstance(data, str) else data
        if len(encoded) > max_bytes:
            raise ItemError(f"The text has {len(encoded)} bytes; {max_bytes} are allowed.", code="text_too_large")
        text = encoded.decode("utf-8-sig")
    except UnicodeError as error:
        raise ItemError(f"The text is not UTF-8: {error}", code="corrupt_media") from error
    text = clean(text, chosen)
    if not text.strip():
        raise ItemError("The text is empty, or nothing was left of it after preprocessing.", code="empty_text")
    return text
