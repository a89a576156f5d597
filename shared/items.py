"""Items: the records of a job, as users give them and as planning leaves them for the workers."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticSerializationError, to_json

from shared.conversations import Message, as_item
from shared.strict import Strict


class Split(StrEnum):
    """The part of the data an item belongs to."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


#: Identifiers and labels are short, printable strings.
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]

#: The `metadata` of one item, as JSON.
METADATA_BYTES = 64 * 1024


class Item(Strict):
    """One record.

    `image` and `audio` are a file id (`file-…`), a `data:` URI, the name of a member beside the manifest, or an
    `https://` URL where those are switched on. `messages` are a conversation for a language model, with at most one
    picture and one sound in it; records in OpenAI's chat format, Alpaca's and ShareGPT's become items, too.
    """

    id: ItemId
    text: str | None = None
    image: str | None = None
    audio: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    label: Label | list[Label] | None = None
    target: float | str | None = None
    split: Split | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_other_formats(cls, value: Any) -> Any:
        return as_item(value) if isinstance(value, dict) else value

    @field_validator("metadata")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            size = len(to_json(value)) if value else 0
        except PydanticSerializationError as error:  # half of a surrogate pair, or more than 254 levels
            raise ValueError(str(error)) from None
        if size > METADATA_BYTES:
            raise ValueError(f"more than {METADATA_BYTES} bytes as JSON")
        return value

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if all(one is None for one in (self.text, self.image, self.audio, self.messages)):
            raise ValueError("an item needs at least one of text, image, audio and messages")
        return self

    @property
    def labels(self) -> list[str]:
        """The label as a list: none, one or several."""
        if self.label is None:
            return []
        return [self.label] if isinstance(self.label, str) else self.label


class MediaLocation(BaseModel):
    """Where a worker finds the bytes of a picture or sound: a range of an object, a URL, or the bytes themselves."""

    bucket: str | None = None
    key: str | None = None
    offset: int = 0
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    data: str | None = Field(None, description="base64, for media that came inside the manifest")
    ref: str = Field("", description="what the manifest called it")


class PlannedItem(BaseModel):
    """An item as planning left it for the workers: one line of a slice."""

    index: int
    id: str
    text: str | None = None
    image: MediaLocation | None = None
    audio: MediaLocation | None = None
    messages: list[Message] | None = None
    label: list[str] = Field(default_factory=list)
    target: float | str | None = None
    split: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
