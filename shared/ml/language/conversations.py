"""A conversation as a language model reads it: token ids, places for soft tokens, and what of it is to be learned."""

import re
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, zip_longest
from typing import Any

from shared.conversations import MediaPart, Message
from shared.errors import JobError
from shared.ml.language.eyes import Eyes

#: Label of a token that is not learned (transformers and torch pass over it).
IGNORED = -100

#: For base models, which have no template of their own (Jinja, as transformers takes it).
BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}Question:\n{{ message.content }}\n\n"
    "{% else %}Answer:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)

# Contents are put into the rendered template afterwards, so that nobody's words can pass for a part of it.
_PLACE = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Encoded:
    """A conversation of n tokens, soft tokens included.

    `ids` [n]; `labels` [n], IGNORED but on the answer and its end; `media` [n], the number of the marker that a soft
    token belongs to, -1 for words. `cut`: how many tokens the question lost, at its start.
    """

    ids: list[int]
    labels: list[int]
    media: list[int]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class _Piece:
    """Tokens in a row of one kind; `cut_order` None: never cut."""

    ids: list[int]
    marker: int = -1
    cut_order: int | None = None


class ConversationTokenizer:
    """A tokenizer with its chat template. Thread-safe.

    `end_ids` are the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, eyes: Eyes | None = None, *, in_parts: bool = False):
        """`tokenizer` is transformers', a fast one; without a chat template it gets BASE_TEMPLATE. `eyes`: of a model
        that reads pictures itself. `in_parts`: its template takes messages as lists of parts."""
        self.tokenizer = tokenizer
        self._eyes, self._in_parts = eyes, in_parts
        if not tokenizer.chat_template:
            tokenizer.chat_template = BASE_TEMPLATE
        self._lock = threading.Lock()
        self._special = frozenset(tokenizer.all_special_ids)
        self._end = self._find_end()
        self.end_ids = frozenset(id for id in (self._end[-1], tokenizer.eos_token_id) if id is not None)

    def encode(
        self,
        conversation: Sequence[Message],
        soft: Sequence[int],
        *,
        answer: str | None = None,
        max_length: int,
        seen: Collection[int] = (),
    ) -> Encoded:
        """The conversation up to where the answer begins, and with `answer` this and its end.

        `soft` is the number of soft tokens of each marker, in order; `seen` are the numbers of those markers at which
        the model is told of a picture as it is used to, the soft tokens being its own image tokens. Longer than
        `max_length`, the question loses tokens at its start: of what was said, the earliest; of the system's words,
        last. Raises JobError: `conversation_impossible` if the template refuses it, `answer_too_long` if cutting the
        whole question does not help.
        """
        pieces = self._pieces(conversation, soft, seen)
        answered = [] if answer is None else [*self.words(answer), *self._end]
        cut = _cut(pieces, sum(len(piece.ids) for piece in pieces) + len(answered) - max_length)
        ids = [id for piece in pieces for id in piece.ids]
        media = [piece.marker for piece in pieces for _ in piece.ids]
        return Encoded(
            [*ids, *answered], [*[IGNORED] * len(ids), *answered], [*media, *[-1] * len(answered)], cut
        )  # fmt: skip

    def words(self, text: str) -> list[int]:
        """Token ids of somebody's words; what looks like a special token in them is none."""
        return self._tokenise(text, split_special=True)

    def show(self, encoded: Encoded) -> str:
        """The whole as text, special tokens included; soft tokens as `⟨image×4⟩` would be: `⟨media 0×4⟩`."""
        shown, begin = [], 0
        for end in [i + 1 for i, (a, b) in enumerate(pairwise(encoded.media)) if a != b] + [len(encoded)]:
            marker = encoded.media[begin] if begin < end else -1
            words = self.tokenizer.decode(encoded.ids[begin:end], skip_special_tokens=False)
            shown.append(words if marker < 0 else f"⟨media {marker}×{end - begin}⟩")
            begin = end
        return "".join(shown)

    def _pieces(self, conversation: Sequence[Message], soft: Sequence[int], seen: Collection[int]) -> list[_Piece]:
        places: list[_Piece] = []  # what is put into the rendered template
        turns, pictures, marker = list[dict[str, Any]](), list[int](), 0
        for message in conversation:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if not isinstance(part, MediaPart):
                    piece = _Piece(self.words(part.text), cut_order=int(message.role == "system"))
                else:
                    marker += 1
                    if marker - 1 in seen:
                        pictures.append(marker - 1)
                        content.append({"type": "image"})
                        continue
                    piece = _Piece([self._filler] * soft[marker - 1], marker - 1)
                content.append({"type": "text", "text": _place(len(places))})
                places.append(piece)
            turns.append(self._turn(message.role, content))
        rendered = self._render(turns, add_generation_prompt=True)
        if [int(i) for i in _PLACE.findall(rendered)] != list(range(len(places))):
            raise _impossible("its chat template leaves out or repeats a message")
        waiting, pieces = list(pictures), list[_Piece]()
        for template, place in zip_longest(_PLACE.split(rendered)[::2], places):
            pieces += self._template(template, waiting)
            pieces += [] if place is None else [place]
        if waiting:
            raise _impossible("its chat template leaves out a picture")
        return pieces

    def _turn(self, role: str, content: list[dict[str, str]]) -> dict[str, Any]:
        """A message as the template takes it: with its parts, or with these joined."""
        if self._in_parts:
            return {"role": role, "content": content}
        picture = "" if self._eyes is None else self._eyes.placeholder
        return {"role": role, "content": "".join(part.get("text", picture) for part in content)}

    def _template(self, text: str, waiting: list[int]) -> list[_Piece]:
        """Words of the template, and between them the image tokens of the pictures that wait for their place."""
        if self._eyes is None or self._eyes.placeholder not in text:
            return [_Piece(self._tokenise(text))]
        # Expanded before they become tokens: what stands around a picture may join with its neighbours.
        ids = self._tokenise(text.replace(self._eyes.placeholder, self._eyes.expanded))
        pieces: list[_Piece] = []
        for is_picture, run in groupby(ids, self._eyes.token.__eq__):
            found = list(run)
            if not is_picture:
                pieces.append(_Piece(found))
                continue
            for _ in range(len(found) // self._eyes.count):
                if not waiting:
                    raise _impossible("its chat template repeats a picture")
                pieces.append(_Piece([self._filler] * self._eyes.count, waiting.pop(0)))
        return pieces

    @property
    def _filler(self) -> int:
        """Stands where soft tokens go; its embedding is never looked at."""
        return int(self.tokenizer.pad_token_id or 0)

    def _find_end(self) -> list[int]:
        """What follows an answer, up to the first special token."""
        said = [{"type": "text", "text": _place(0)}], [{"type": "text", "text": _place(1)}]
        turns = [self._turn(role, content) for role, content in zip(("user", "assistant"), said, strict=True)]
        tail = self._tokenise(_PLACE.split(self._render(turns))[-1])
        special = next((i for i, id in enumerate(tail) if id in self._special), None)
        if special is not None:
            return tail[: special + 1]
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise _impossible("its tokenizer has no token for the end of a text")
        return [int(eos)]

    def _render(self, turns: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
                )
            )
        except TemplateError as error:
            raise _impossible(f"its chat template refuses it ({error})") from error

    def _tokenise(self, text: str, *, split_special: bool = False) -> list[int]:
        with self._lock:  # transformers sets this on the tokenizer inside, which all threads share
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special)
        return list(found["input_ids"])


def _place(number: int) -> str:
    return f"\ue000{number}\ue001"


def _cut(pieces: Iterable[_Piece], excess: int) -> int:
    """Takes so many tokens from the pieces that may be cut. Raises JobError (`answer_too_long`)."""
    left = max(excess, 0)
    for piece in sorted((p for p in pieces if p.cut_order is not None), key=lambda p: p.cut_order or 0):
        taken = min(left, len(piece.ids))
        del piece.ids[:taken]
        left -= taken
    if left:
        message = (
            f"The answer does not fit: even without its question the conversation is {left} tokens too long. Raise "
            "max_length, or shorten the answer."
        )
        raise JobError(message, code="answer_too_long")
    return max(excess, 0)


def _impossible(cause: str) -> JobError:
    message = f"The language model cannot be given this conversation: {cause}."
    return JobError(message, code="conversation_impossible")
