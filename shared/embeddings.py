"""What `POST /v1/embeddings` takes and answers, in OpenAI's shape and for every modality; batches answer the same."""

import base64
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator, model_validator

from shared.errors import InvalidRequestError
from shared.items import Item
from shared.queues import Modality
from shared.strict import Strict

Vectors = NDArray[np.float32]

#: More inputs are several requests, or a batch.
MOST_INPUTS = 2048


class MediaInput(Strict):
    """One input that may be of any modality: a text, or a picture or sound as a `data:` URI or the id of a file."""

    text: str | None = None
    image: str | None = Field(None, examples=["file-01k9w0c3v8e6m5j2k1x7r4t9qz"])
    audio: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1 or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("an input that is an object has one of text, image and audio")
        return self


Input = str | MediaInput


class EmbeddingRequest(Strict):
    """Texts, or (not in OpenAI's interface) pictures and sounds, and the encoder that makes vectors of them."""

    model: str = Field(examples=["all-minilm-l6-v2"], description="an encoder, or the id of one that a job made")
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of float32, little-endian")
    dimensions: int | None = Field(
        None, ge=1, description="fewer than the encoder has: only if it is one whose vectors may be cut"
    )
    user: str | None = Field(None, description="ignored")

    @field_validator("input", mode="before")
    @classmethod
    def _is_no_tokens(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(entry, int | float | list) for entry in value):
            raise ValueError("token arrays are not taken, since each encoder has its own vocabulary; send the text")
        return value

    def items(self) -> list[Item]:
        """The inputs in their order, as items of which each has one modality."""
        inputs = self.input if isinstance(self.input, list) else [self.input]
        return [
            Item(id=str(place), **({"text": one} if isinstance(one, str) else one.model_dump(exclude_none=True)))
            for place, one in enumerate(inputs)
        ]

    def check_modality(self, modality: Modality) -> None:
        """Raises InvalidRequestError (`unsuitable_input`) unless all inputs are what the encoder takes."""
        for place, item in enumerate(self.items()):
            if getattr(item, modality) is None:
                message = f"{self.model!r} encodes {modality}; this input is something else."
                raise InvalidRequestError(message, code="unsuitable_input", param=f"input.{place}")

    def check_dimensions(self, dimension: int, *, may_be_cut: bool) -> None:
        """Raises InvalidRequestError (`unsupported_dimensions`) if the encoder's vectors cannot have so many."""
        if self.dimensions in {None, dimension} or (may_be_cut and (self.dimensions or 0) < dimension):
            return
        why = (
            "that is the most it has"
            if may_be_cut
            else "the beginning of its vectors means nothing by itself (encoders of which it does have the option "
            "`matryoshka` in the catalogue)"
        )
        message = f"The vectors of {self.model!r} have {dimension} dimensions, and {why}: leave `dimensions` out."
        raise InvalidRequestError(message, code="unsupported_dimensions", param="dimensions")


class Embedding(BaseModel):
    """The vector of one input: a list of numbers, or base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of the texts as the encoder cut them, special ones included, after the limit of its length; pictures and
    sounds have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def answer(request: EmbeddingRequest, vectors: Vectors, tokens: int) -> EmbeddingList:
    """The vectors, float32 [n, d], as the request asks for them."""
    rows = vectors if request.dimensions is None else cut(vectors, request.dimensions)
    written = [_base64(row) for row in rows] if request.encoding_format == "base64" else rows.tolist()
    return EmbeddingList(
        data=[Embedding(index=place, embedding=one) for place, one in enumerate(written)],
        model=request.model,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def cut(vectors: Vectors, dimensions: int) -> Vectors:
    """The first `dimensions` of vectors [n, d], scaled to length 1 again (Matryoshka representation learning, Kusupati
    et al. 2022); those that have all d stay as they are."""
    if dimensions >= vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(lengths > 0, lengths, 1), np.float32)


def _base64(row: Vectors) -> str:
    return base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode()
