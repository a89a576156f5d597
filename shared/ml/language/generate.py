"""Answers of a language model: many conversations at once, with the cache of what was read, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from shared.conversations import Message
from shared.ml.language.loading import LanguageModel
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import TunedLanguageModel
from shared.schemas import Strict


class Generation(Strict):
    """How an answer is drawn. Temperature 0 always takes the likeliest token."""

    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1, description="only the likeliest tokens that are together as likely as this")
    stop: list[str] = Field(default_factory=list, max_length=16, description="the answer ends before any of these")
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Prompted:
    """A conversation to be answered, and what stands for its markers, in order (see shared.conversations.markers).

    A medium whose vector is None is passed over, as in training.
    """

    conversation: Sequence[Message]
    media: Sequence[Media] = ()
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True)
class Generated:
    """An answer. `stop`: the model, or one of the stop words, ended it; `length`: the limit did."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


def generate(
    model: TunedLanguageModel | LanguageModel,
    prompts: Sequence[Prompted],
    *,
    emit: Callable[[int, str], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Generated]:
    """Answers, in the order of the prompts. Each answer depends on its own prompt and seed alone.

    `emit(place, text)` is told of each piece of the answer to prompt number `place` as soon as it is certain; the
    pieces make up the whole text. `check` is called before each token and may raise to stop. Conversations longer than
    what the model can read lose the start of their question. Raises JobError (`conversation_impossible`,
    `answer_too_long`, `out_of_memory`).
    """
    raise NotImplementedError
