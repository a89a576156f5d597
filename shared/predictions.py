"""What `POST /v1/predictions` takes and answers: what a model says of a few items, while the caller waits."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from shared.items import Item
from shared.queues import Modality
from shared.strict import Strict

#: More items are a job.
MOST_ITEMS = 64


class PredictionRequest(Strict):
    """A few items, as in a job, and the model of a fine_tune job. It decides how the items are encoded."""

    model: str = Field(examples=["model-01k9w0e1a4b7c2d5f8g3h6j9km"])
    items: Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS)]
    contributions: bool = Field(False, description="how much each modality moved each prediction (Shapley values)")
    timeout_seconds: float = Field(10.0, gt=0, le=60, description="how long the caller waits before the answer is 504")


class PredictionError(BaseModel):
    """Why a modality of an item was not used (`modality` null: why nothing can be said of the item)."""

    modality: Modality | None
    code: str
    message: str


class Prediction(BaseModel):
    """What a model says of one item; without a usable modality, nothing but `errors`.

    The same as the results of a predict job have it: `prediction` is a list of class names, or a number.
    """

    id: str
    prediction: list[str] | float | None = None
    probability: float | None = Field(None, description="of the most probable class")
    probabilities: dict[str, float] | None = Field(None, description="of each class")
    contributions: dict[Modality, float] | None = None
    errors: list[PredictionError] = Field(default_factory=list)


class PredictionList(BaseModel):
    """The predictions, in the order of the items."""

    object: Literal["list"] = "list"
    model: str
    data: list[Prediction]
