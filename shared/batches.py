"""Batches in OpenAI's shape: a file of requests to one endpoint, which a job answers into a file of responses."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from shared.fine_tuning import PredictRequest
from shared.schemas import BatchStatus, FeaturesRequest, Metadata, Strict


class Endpoint(StrEnum):
    """Where the requests of a batch would go by themselves."""

    EMBEDDINGS = "/v1/embeddings"
    CHAT = "/v1/chat/completions"


class BatchRequest(Strict):
    """A file of requests, one a line: `{"custom_id", "method": "POST", "url", "body"}`."""

    input_file_id: str = Field(examples=["file-01k9w0c3v8e6m5j2k1x7r4t9qz"])
    endpoint: Endpoint = Field(description="the `url` of all its requests")
    completion_window: str = Field(
        "24h",
        pattern=r"^([1-9][0-9]?|[1-6][0-9]{2}|7[01][0-9]|720)h$",
        description="1h to 720h; what is not answered by then is `batch_expired` in the error file",
    )
    metadata: Metadata | None = None

    @property
    def window_seconds(self) -> int:
        """How long the batch may take."""
        return int(self.completion_window[:-1]) * 3600


class BatchOf(BaseModel):
    """What the request of a batch's job says of the batch; `model` is null if its first line names none."""

    endpoint: Endpoint
    completion_window: str
    model: str | None


class EmbeddingsBatchOf(BatchOf):
    """The same, and what `dimensions` may be asked for."""

    dimension: int
    may_be_cut: bool


class EmbeddingsBatch(FeaturesRequest):
    """The job behind a batch of requests to /v1/embeddings."""

    batch: EmbeddingsBatchOf


class ChatBatch(PredictRequest):
    """The job behind a batch of requests to /v1/chat/completions; how each is answered is in its item's metadata."""

    batch: BatchOf


class BatchError(BaseModel):
    """What is wrong with a line of the input file (`line` null: with the whole batch)."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """Why a batch failed as a whole: the first of its errors."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """How the requests of a batch ended so far."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    """Of the input."""

    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the output."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """The tokens of all requests that were answered."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = Field(default_factory=InputTokensDetails)
    output_tokens: int
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int


class Batch(BaseModel):
    """A batch and how far it is; times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = Field(description="responses, in the order of the requests")
    error_file_id: str | None = Field(description="requests that could not be answered")
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: Metadata | None
    job_id: str = Field(description="of the job that answers it")
