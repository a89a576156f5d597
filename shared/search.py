"""What `POST /v1/search` takes and answers: items near another one, whatever the modality."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from shared.items import ItemId, Label, Split
from shared.queues import Modality
from shared.schemas import MetadataKey, MetadataValue
from shared.strict import Strict

#: What items have in their metadata is compared with these.
MetadataPairs = Annotated[dict[MetadataKey, bool | int | float | MetadataValue], Field(max_length=16)]

#: More items cannot be asked for at once.
MOST_FOUND = 100


class SearchQuery(Strict):
    """What to search by: an item of the index by its id, or one that is sent, with one modality or several."""

    id: ItemId | None = None
    text: str | None = None
    image: str | None = Field(None, description="a `data:` URI, or the id of an uploaded file")
    audio: str | None = Field(None, description="a `data:` URI, or the id of an uploaded file")

    @property
    def modalities(self) -> list[Modality]:
        """Those that it holds."""
        return [m for m in Modality if getattr(self, m.value) is not None]

    @model_validator(mode="after")
    def _one_item(self) -> Self:
        if (self.id is not None) == bool(self.modalities):
            raise ValueError("give the id of an item of the index, or an item: text, image, audio")
        return self


class SearchFilter(Strict):
    """Which items may be found: those to which all of this applies."""

    label: Annotated[list[Label], Field(min_length=1, max_length=100)] | Label | None = Field(
        None, description="of several, one is enough"
    )
    split: Split | None = None
    metadata: MetadataPairs = Field(default_factory=dict, description="each pair, as the item has it")

    @property
    def labels(self) -> list[str]:
        """The label as a list."""
        return [self.label] if isinstance(self.label, str) else self.label or []


class SearchRequest(Strict):
    """Where to search, by what, and for what."""

    index: str = Field(description="the job that made it", examples=["job-01k9w0c5h2m7v4x8r1t6q3z9ny"])
    query: SearchQuery
    modality: Modality | None = Field(None, description="what to find; null: whatever is nearest")
    limit: int = Field(10, ge=1, le=MOST_FOUND)
    filter: SearchFilter = Field(default_factory=SearchFilter)
    exact: bool = Field(False, description="compare with every item instead of following the index")
    timeout_seconds: float = Field(10.0, gt=0, le=60, description="how long the caller waits before the answer is 504")


class SearchResult(BaseModel):
    """An item that was found."""

    id: str
    score: float = Field(description="cosine similarity, at most 1")
    modality: Modality = Field(description="the one of the item that is near")
    label: list[str]
    split: str | None
    metadata: dict[str, Any]
    text: str | None = Field(description="its beginning")
    image_ref: str | None = Field(description="what the manifest called it")
    audio_ref: str | None


class SearchResults(BaseModel):
    """What was found, the nearest first."""

    object: Literal["list"] = "list"
    index: str
    data: list[SearchResult]
