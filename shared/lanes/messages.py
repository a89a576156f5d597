"""What passes through Redis between the gateway and interactive lanes: JSON, vectors as base64 of float32.

One list of requests for each stage and model, so that a worker takes those for the models that it has loaded; a set of
the lanes in use for each stage, so that some worker takes up a lane whose model nobody has loaded; one list of answers
for each gateway process, and a key for each request whose caller has gone before the end of its answer. Deadlines are
Unix times: the clocks of gateway and workers must agree to about a second. That of a conversation is when its answer
must have begun; what follows may take longer, but not KEEP_SECONDS from one piece to the next.
"""

import base64
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from shared.conversations import Message
from shared.generation import Generation
from shared.items import MediaLocation
from shared.queues import Modality, Stage

#: Requests and answers that nobody fetched for this long are gone; no deadline is further away.
KEEP_SECONDS = 60


class Rows(BaseModel):
    """An array, float32 [n, d]: base64 of its rows, little-endian."""

    shape: tuple[int, int]
    data: str

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> Self:
        """The array as a message holds it."""
        n, d = array.shape
        return cls(shape=(n, d), data=base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode())

    def array(self) -> NDArray[np.float32]:
        """The array. Raises ValueError if the data is not that of its shape."""
        return np.frombuffer(base64.b64decode(self.data, validate=True), "<f4").reshape(self.shape).astype(np.float32)


class Fault(BaseModel):
    """Why something cannot be used: a stable code, and words for people."""

    code: str
    message: str


class EncodeItems(BaseModel):
    """Texts, pictures or sounds to be encoded, and their modality's part of a job's `preprocessing`."""

    kind: Literal["encode"] = "encode"
    items: list[str | MediaLocation]
    preprocessing: dict[str, Any] = Field(default_factory=dict)


class PredictRows(BaseModel):
    """Vectors of n items to predict from; `mask` says which items have one."""

    kind: Literal["predict"] = "predict"
    vectors: dict[Modality, Rows]
    mask: dict[Modality, list[bool]]
    contributions: bool


class FuseRows(BaseModel):
    """Vectors of n items to be fused by a model, as `PredictRows` has them."""

    kind: Literal["fuse"] = "fuse"
    vectors: dict[Modality, Rows]
    mask: dict[Modality, list[bool]]


class GenerateItems(BaseModel):
    """A conversation that a language model is to go on with; `media` has a vector [1, d] for each of its markers, in
    their order."""

    kind: Literal["generate"] = "generate"
    conversation: list[Message]
    media: list[Rows] = Field(default_factory=list)
    generation: Generation = Field(default_factory=Generation)


Payload = EncodeItems | PredictRows | FuseRows | GenerateItems


class LaneRequest(BaseModel):
    """Something that a caller waits for, until `deadline`."""

    request_id: str
    tenant: str
    stage: Stage
    model: str
    deadline: float
    reply_to: str
    payload: Annotated[Payload, Field(discriminator="kind")]


class Encoded(BaseModel):
    """The vectors of items in their order; a row of zeros and a fault for each item that could not be encoded.

    `tokens` is how many the encoder made of the texts; pictures and sounds have none.
    """

    kind: Literal["encoded"] = "encoded"
    vectors: Rows
    faults: dict[int, Fault]
    tokens: int = 0


class Predicted(BaseModel):
    """What a model says of items in their order, as `shared.ml.trained.Predictions` has it."""

    kind: Literal["predicted"] = "predicted"
    labels: list[list[str]]
    probabilities: list[list[float]] | None
    values: list[float] | None
    contributions: dict[Modality, list[float]] | None


class Fused(BaseModel):
    """What a model's fusion makes of items in their order; of an aligning one, where they are in the shared space."""

    kind: Literal["fused"] = "fused"
    vectors: Rows


class Said(BaseModel):
    """The next piece of an answer of a language model; more will follow."""

    kind: Literal["said"] = "said"
    text: str


class Spoken(BaseModel):
    """The end of an answer of a language model, after all pieces of its text."""

    kind: Literal["spoken"] = "spoken"
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Failed(Fault):
    """Why there is no answer to the whole request, or no more of it."""

    kind: Literal["failed"] = "failed"


Result = Encoded | Predicted | Fused | Said | Spoken | Failed


class LaneAnswer(BaseModel):
    """The answer to a request; `said` is followed by more."""

    request_id: str
    result: Annotated[Result, Field(discriminator="kind")]


def lane_key(stage: Stage, model: str) -> str:
    """The list of the requests for a model."""
    return f"trivium:lane:{stage}:{model}"


def active_key(stage: Stage) -> str:
    """The sorted set of a stage's models in use; the score is the time from which on any worker may take up a lane."""
    return f"trivium:lanes:{stage}"


def gone_key(request_id: str) -> str:
    """Is there if nobody waits for the answer any more."""
    return f"trivium:gone:{request_id}"


def answers_key(process: str) -> str:
    """The list of the answers for a gateway process."""
    return f"trivium:answers:{process}"
