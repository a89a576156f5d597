"""How a language model answers: what can be asked for, by a job or by somebody who waits. No heavy library here."""

from typing import Annotated

from pydantic import Field

from shared.schemas import Strict

#: Where the metadata of an item say how its own answer is drawn, in jobs whose items differ in that (batches).
OWN_GENERATION = "generation"

#: The answer to a chat, or to an item of a job, if nothing else is asked for.
MAX_TOKENS = 256


StopWord = Annotated[str, Field(min_length=1, max_length=256)]
StopWords = Annotated[list[StopWord], Field(max_length=16)]


class Generation(Strict):
    """How an answer is drawn. Temperature 0 always takes the likeliest token."""

    max_tokens: int = Field(MAX_TOKENS, ge=1, le=32_768, description="the answer breaks off after so many")
    temperature: float = Field(1.0, ge=0, le=2, description="0: always the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="only the likeliest tokens that are together as likely as this")
    stop: StopWords = Field(default_factory=list, description="the answer ends before any of these")
    seed: int = Field(0, ge=0, lt=2**63)


class JobGeneration(Generation):
    """Of a job, whose results had better be the same each time."""

    temperature: float = Field(0.0, ge=0, le=2, description="0: always the likeliest token")
