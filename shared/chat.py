"""Chat in OpenAI's shape: what `POST /v1/chat/completions` takes and answers. No heavy library is imported here.

What the models here cannot do, such as calling tools, is refused and not passed over.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from shared.conversations import ContentPart, MediaPart, Message, media_of
from shared.conversations import TextPart as Words
from shared.generation import MAX_TOKENS, Generation, StopWord, StopWords
from shared.ids import new_id
from shared.queues import Modality
from shared.strict import Strict

FinishReason = Literal["stop", "length"]


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where a picture is; `detail` is passed over, since each encoder has its own size."""

    url: str = Field(description="a `data:` URI, the id of an uploaded file, or https:// where that is switched on")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Strict):
    """A sound."""

    data: str = Field(description="base64, a `data:` URI, or the id of an uploaded file")
    format: str = Field("wav", max_length=32, pattern=r"^[\w.+-]+$")


class AudioPart(Strict):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[Part]
    name: str | None = Field(None, description="passed over")


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool = Field(False, description="a last chunk with the token counts")


class ChatRequest(Strict):
    """A conversation, and how it goes on."""

    model: str = Field(
        description="a language model of the catalogue, or one that a job tuned",
        examples=["model-01k9w0e1a4b7c2d5f8g3h6j9km"],
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=32_768, description=f"the answer breaks off after so many; null: {MAX_TOKENS}"
    )
    max_tokens: int | None = Field(None, ge=1, le=32_768, description="the older name of the same")
    temperature: float | None = Field(None, ge=0, le=2, description="0: always the likeliest token; null: 1")
    top_p: float | None = Field(None, gt=0, le=1, description="null: 1")
    stop: StopWord | StopWords | None = Field(None, description="the answer ends before any of these")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="the same one gives the same answer")
    stream: bool | None = Field(None, description="server-sent events, a chunk each, then `[DONE]`")
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = Field(None, description="passed over")
    timeout_seconds: float = Field(60.0, gt=0, le=60, description="until the answer begins; after that it is 504")


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class Usage(BaseModel):
    """Tokens; those that stand for pictures and sounds count among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> "Usage":
        """With the sum."""
        total = prompt_tokens + completion_tokens
        return cls(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


class _Completion(BaseModel):
    """What an answer and each chunk of it begin with."""

    id: str = Field(default_factory=lambda: new_id("chatcmpl"))
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str


class ChatCompletion(_Completion):
    """A whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _only_what_is_new(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """The next piece of the answer; the last one has a reason for its end."""

    index: Literal[0] = 0
    delta: Delta
    finish_reason: FinishReason | None = None


class ChatChunk(_Completion):
    """A piece of an answer; of a stream with usage, the last one has that and no choice."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None


@dataclass(frozen=True)
class Translated:
    """A conversation with markers, and the modality and reference of what each of them stands for."""

    conversation: list[Message]
    media: list[tuple[Modality, str]]


def translate(messages: Sequence[ChatMessage]) -> Translated:
    """OpenAI's messages as ours; `developer` is the newer name of `system`."""
    media: list[tuple[Modality, str]] = []
    conversation = [_message(message, media) for message in messages]
    return Translated(conversation, media)


def generation_of(request: ChatRequest) -> Generation:
    """How the answer is drawn; without a seed, differently each time."""
    given = {
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": [request.stop] if isinstance(request.stop, str) else request.stop,
        "seed": secrets.randbits(63) if request.seed is None else request.seed % 2**63,
    }
    return Generation.model_validate({name: value for name, value in given.items() if value is not None})


def _message(message: ChatMessage, media: list[tuple[Modality, str]]) -> Message:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Message(role=role, content=message.content)
    parts: list[ContentPart] = []
    for part in message.content:
        if isinstance(part, TextPart):
            parts.append(Words(text=part.text))
            continue
        found = media_of(part.model_dump())
        assert found is not None
        media.append((Modality(found[0]), found[1]))
        parts.append(MediaPart(type=found[0]))
    return Message(role=role, content=parts)
