"""The label that an answer names, as evaluation judges it and as predict jobs say it."""

import re
from collections.abc import Mapping


def label_of(answer: str, words: Mapping[str, str]) -> str | None:
    """The label whose word the answer is, or begins with; the longest word counts. None if it names none.

    `words` has the labels by their words (see shared.prompts.labels_of_words).
    """
    said = normalised(answer)
    for word in sorted(words, key=len, reverse=True):
        if re.match(rf"{re.escape(normalised(word))}(?!\w)", said):
            return words[word]
    return None


def normalised(text: str) -> str:
    """Without case, spaces around and at the ends, and a full stop."""
    return " ".join(text.casefold().split()).rstrip(".。")
