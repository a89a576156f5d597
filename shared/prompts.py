"""Prompts as data: templates that make a conversation of an item. No heavy library is imported here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from shared.conversations import ContentPart, MediaPart, Message, TextPart
from shared.preprocessing import DrawnText
from shared.schemas import Item, Label, Metadata, Strict

#: What a template can hold, and what a class template must.
PLACEHOLDERS, CLASS = ("text", "image", "audio"), "label"

_PLACEHOLDER = re.compile(r"\{(\w*)\}")

Words = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _only_of_an_item(value: str) -> str:
    for name in _PLACEHOLDER.findall(value):
        if name not in PLACEHOLDERS:
            raise ValueError(f"{{{name}}} is no placeholder; there are {{text}}, {{image}} and {{audio}}")
    return value


def _only_the_class(value: str) -> str:
    if set(_PLACEHOLDER.findall(value)) != {CLASS}:
        raise ValueError("a class template has the placeholder {label}, and no other")
    return value


ClassTemplate = Annotated[str, Field(max_length=256), AfterValidator(_only_the_class)]


class PromptTemplate(Strict):
    """How an item is put to a language model or to encoders, and how its labels are called.

    `{text}`, `{image}` and `{audio}` stand for what the item has; of what it does not have nothing stands there.
    """

    template: Annotated[str, AfterValidator(_only_of_an_item)] = Field(
        "{image}{audio}{text}",
        max_length=65_536,
        examples=["{image}{audio}Decide whether the post is a rumour.\n{text}"],
    )
    system: str | None = Field(None, max_length=65_536, description="what the model is told before")
    verbalizers: dict[Label, Annotated[list[Words], Field(min_length=1, max_length=32)]] = Field(
        default_factory=dict,
        max_length=10_000,
        description="the words for a label, the first of which is learned; the label itself if none",
    )
    class_templates: list[ClassTemplate] = Field(
        default_factory=lambda: ["a photo of a {label}."],
        min_length=1,
        max_length=100,
        description="how a label is put to the text tower of a dual encoder; the vectors of several are averaged",
    )
    image_text: DrawnText | None = Field(None, description="words that are drawn on every picture before it is encoded")
    language: str = Field("en", max_length=35, pattern=r"^[A-Za-z0-9-]+$", description="BCP 47")

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        strings = [self.template, self.system or "", *self.class_templates, *self.verbalizers]
        strings += [word for words in self.verbalizers.values() for word in words]
        if any("\0" in string for string in strings):
            raise ValueError("a prompt holds no NUL characters")
        try:
            "".join(strings).encode()
        except UnicodeEncodeError:
            raise ValueError("a prompt is valid Unicode, without halves of surrogate pairs") from None
        return self

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

    def class_texts(self, label: str) -> list[str]:
        """What a text tower reads of a label: each class template with each of its words."""
        return [
            "".join(word if place % 2 else piece for place, piece in enumerate(_PLACEHOLDER.split(template)))
            for template in self.class_templates
            for word in self.words_for(label)
        ]


class NewPrompt(Strict):
    """A prompt to be stored. One of a name that is there already becomes its next version; the others stay."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", examples=["rumour"])
    prompt: PromptTemplate
    metadata: Metadata = Field(default_factory=dict)


class Prompt(BaseModel):
    """A stored prompt: one version of a name. Jobs name it by its id."""

    id: str
    object: Literal["prompt"] = "prompt"
    name: str
    version: int
    created_at: int
    prompt: PromptTemplate
    metadata: Metadata = Field(default_factory=dict)


class PreviewRequest(Strict):
    """What a prompt is to be shown with."""

    item: Item = Field(description="its picture and sound are not read: their places are shown")


class PromptPreview(BaseModel):
    """What becomes of an item."""

    object: Literal["prompt.preview"] = "prompt.preview"
    conversation: list[Message] = Field(description="what a language model is given, up to its answer")
    text: str = Field(description="the same in one piece, for people; `[image]` and `[audio]` where media come in")
    class_texts: dict[str, list[str]] = Field(
        description="what the text tower of a dual encoder reads, by label: those of the item, and some others"
    )
    image: str | None = Field(None, description="words drawn on an empty picture of 448x448 pixels: a PNG as data: URI")


def conversation_of(prompt: PromptTemplate, item: Item) -> list[Message]:
    """An item's own messages up to the last answer, or what the prompt makes of it."""
    if item.messages is None:
        return prompt.question(item.text, [m for m in ("image", "audio") if getattr(item, m) is not None])
    answered = item.messages[-1].role == "assistant"
    return item.messages[:-1] if answered else item.messages


def as_text(conversation: Sequence[Message]) -> str:
    """A conversation for people to read."""

    def pieces(message: Message) -> Iterator[str]:
        for part in message.parts:
            yield part.text if isinstance(part, TextPart) else f"[{part.type}]"

    return "\n\n".join(f"{message.role}: {''.join(pieces(message))}" for message in conversation)


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
