"""The text of one answer as its tokens come: what of it is certain, and where it ends."""

from collections.abc import Sequence
from typing import Any, Literal

_UNFINISHED = "\ufffd"  # what a tokenizer makes of half a character


class Answer:
    """Tokens to text. Half a character, or what may become a stop word, is held back until it is certain."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], max_tokens: int, end_ids: frozenset[int]):
        self._tokenizer, self._stop = tokenizer, [word for word in stop if word]
        self._max_tokens, self._end_ids = max_tokens, end_ids
        self._tokens: list[int] = []
        self._shown = self._read = 0  # tokens: from where decoding starts, and up to where it is done
        self._text, self._given = "", 0
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def text(self) -> str:
        """All that is certain so far."""
        return self._text[: self._given]

    @property
    def tokens(self) -> int:
        """How many there are; the one that ended the answer counts."""
        return len(self._tokens)

    def add(self, token: int) -> str:
        """What the next token makes certain."""
        self._tokens.append(token)
        if token in self._end_ids:
            self._text += self._decoded(len(self._tokens) - 1)
            self.finish_reason = "stop"
        else:
            self._text += self._decoded(len(self._tokens), unfinished=True)
            if len(self._tokens) >= self._max_tokens:
                self._text += self._decoded(len(self._tokens))
                self.finish_reason = "length"
        certain = self._certain()
        piece, self._given = self._text[self._given : certain], max(certain, self._given)
        return piece

    def _decoded(self, end: int, *, unfinished: bool = False) -> str:
        """The text of the tokens from `_read` to `end`; decoded with some before them, on which spaces depend."""
        before = self._decode(self._shown, self._read)
        now = self._decode(self._shown, end)
        if unfinished and now.endswith(_UNFINISHED):
            return ""
        self._shown, self._read = self._read, end
        return now[len(before) :]

    def _decode(self, begin: int, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[begin:end], skip_special_tokens=True))

    def _certain(self) -> int:
        """How much of the text will not be taken back; cuts the text where a stop word begins."""
        found = [place for word in self._stop if (place := self._text.find(word)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.finish_reason = "stop"
        if self.finish_reason is not None:
            return len(self._text)
        held = max((_overlap(self._text, word) for word in self._stop), default=0)
        return len(self._text) - held


def _overlap(text: str, word: str) -> int:
    """The longest end of `text` with which `word` begins."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
