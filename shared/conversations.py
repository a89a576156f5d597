"""Conversations: what a language model reads and answers, and the record formats that people have them in.

A picture or sound has a marker in the conversation; it stands beside it, where an item has its media. No heavy library
is imported here.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.strict import Strict

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class TextPart(Strict):
    """Words."""

    type: Literal["text"] = "text"
    text: str


class MediaPart(Strict):
    """Where a picture or a sound comes in: the marker, not the bytes."""

    type: Literal["image", "audio"]


ContentPart = Annotated[TextPart | MediaPart, Field(discriminator="type")]


class Message(Strict):
    """One turn: words, or parts in the order in which they are read."""

    role: Literal["system", "user", "assistant"]
    content: str | list[ContentPart]

    @property
    def parts(self) -> list[ContentPart]:
        """The content as parts."""
        return [TextPart(text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def markers(conversation: Sequence[Message]) -> list[str]:
    """`image` and `audio` in the order in which the conversation has them."""
    return [part.type for message in conversation for part in message.parts if isinstance(part, MediaPart)]


def as_item(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of another format as the fields of an item; fields of an item as they are.

    OpenAI's chat format (`messages`, with `image_url` and `input_audio` parts), Alpaca (`instruction`, `input`,
    `output`), ShareGPT (`conversations` of `from` and `value`). Raises ValueError in words.
    """
    if "conversations" in fields:
        fields = _from_sharegpt(fields)
    elif "instruction" in fields and "output" in fields:
        fields = _from_alpaca(fields)
    return _from_chat(fields) if isinstance(fields.get("messages"), list) else fields


def _from_sharegpt(fields: Mapping[str, Any]) -> dict[str, Any]:
    turns = fields["conversations"]
    messages = []
    for turn in turns if isinstance(turns, list) else [{}]:
        role = _SHAREGPT_ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None:
            raise ValueError("conversations: each turn needs `from` (human, gpt or system) and `value`")
        messages.append({"role": role, "content": turn.get("value")})
    return {name: value for name, value in fields.items() if name != "conversations"} | {"messages": messages}


def _from_alpaca(fields: Mapping[str, Any]) -> dict[str, Any]:
    question = "\n\n".join(str(fields[name]) for name in ("instruction", "input") if fields.get(name))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]
    rest = {name: value for name, value in fields.items() if name not in ("instruction", "input", "output")}
    return rest | {"messages": messages}


def _from_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Media out of the messages, markers in their place."""
    media: dict[str, str] = {}
    messages = [_message(message, media) for message in fields["messages"]]
    for modality in media.keys() & fields.keys():
        raise ValueError(f"{modality}: the messages hold one already")
    return {**fields, **media, "messages": messages}


def _message(message: Any, media: dict[str, str]) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_part(part, media) for part in message["content"]]}


def _part(part: Any, media: dict[str, str]) -> Any:
    found = media_of(part)
    if found is None:
        return part
    modality, reference = found
    if modality in media:
        raise ValueError(f"messages: more than one {modality}; an item has one at most")
    media[modality] = reference
    return {"type": modality}


def media_of(part: Any) -> tuple[Literal["image", "audio"], str] | None:
    """The modality and reference of a part in OpenAI's format that holds media; None for others.

    Raises ValueError if it is one, but broken.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url":
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        if not isinstance(url, str):
            raise ValueError("messages: an image_url part needs `image_url.url`")
        return "image", url
    if kind == "input_audio":
        given = part.get("input_audio")
        if not isinstance(given, dict) or not isinstance(given.get("data"), str):
            raise ValueError("messages: an input_audio part needs `input_audio.data`, in base64")
        data = given["data"]
        is_reference = data.startswith(("file-", "data:"))
        return "audio", data if is_reference else f"data:audio/{given.get('format', 'wav')};base64,{data}"
    return None
