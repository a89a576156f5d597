"""Prompts as data: templates that make a conversation of an item. No heavy library is imported here."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from shared.conversations import ContentPart, MediaPart, Message, TextPart
from shared.schemas import Label, Strict

#: What a template can hold.
PLACEHOLDERS = ("text", "image", "audio")

_PLACEHOLDER = re.compile(r"\{(\w*)\}")

Words = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class PromptTemplate(Strict):
    """How an item is put to a language model, and how its labels are called.

    `{text}`, `{image}` and `{audio}` stand for what the item has; of what it does not have nothing stands there.
    """

    template: str = Field(
        "{image}{audio}{text}",
        max_length=65_536,
        examples=["{image}{audio}Decide whether the post is a rumour.\n{text}"],
    )
    system: str | None = Field(None, max_length=65_536, description="what the model is told before")
    verbalizers: dict[Label, Annotated[list[Words], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="the words for a label, the first of which is learned; the label itself if none",
    )
    language: str = Field("en", max_length=35, description="BCP 47")

    @field_validator("template")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        for name in _PLACEHOLDER.findall(value):
            if name not in PLACEHOLDERS:
                raise ValueError(f"{{{name}}} is no placeholder; there are {{text}}, {{image}} and {{audio}}")
        return value

    def question(self, text: str | None, media: Sequence[str]) -> list[Message]:
        """The conversation up to the answer, for an item with this text and these media (`image`, `audio`)."""
        parts: list[ContentPart] = []
        for place, piece in enumerate(_PLACEHOLDER.split(self.template)):
            if place % 2 == 0:
                _add_text(parts, piece)
            elif piece == "text":
                _add_text(parts, text or "")
            elif piece in media:
                parts.append(MediaPart.model_validate({"type": piece}))
        system = [] if self.system is None else [Message(role="system", content=self.system)]
        return [*system, Message(role="user", content=parts)]

    def words_for(self, label: str) -> list[str]:
        """What a label is called, the usual name first."""
        return self.verbalizers.get(label, [label])


def _add_text(parts: list[ContentPart], text: str) -> None:
    if not text:
        return
    last = parts[-1] if parts else None
    if isinstance(last, TextPart):
        parts[-1] = TextPart(text=last.text + text)
    else:
        parts.append(TextPart(text=text))


def labels_of_words(verbalizers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The label that each word stands for, by the word in small letters."""
    return {word.casefold(): label for label, words in verbalizers.items() for word in words}
