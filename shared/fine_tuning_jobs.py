"""Fine-tuning in OpenAI's shape: a fine_tune job of the method `instruction`, asked for and shown in its words."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from shared.language_tuning import InstructionRequest
from shared.schemas import FineTuningStatus, Metadata
from shared.strict import Strict

#: What `learning_rate_multiplier` multiplies: the learning rate of LoRA.
LEARNING_RATE = 2e-4


class Hyperparameters(Strict):
    """`auto` is the platform's choice."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description=f"times {LEARNING_RATE}"
    )


class Supervised(Strict):
    """Learning to answer as the examples do."""

    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class TuningMethod(Strict):
    """Of OpenAI's methods this is the one that there is here."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Field(default_factory=Supervised)


class FineTuningRequest(Strict):
    """Files of conversations, and the language model that is to answer like them."""

    model: str = Field(examples=["gemma3-270m"], description="of the catalogue, or a tuned one, whose training goes on")
    training_file: str = Field(examples=["file-01k9w0c3v8e6m5j2k1x7r4t9qz"])
    validation_file: str | None = Field(None, description="null: a part of the training file is kept out of training")
    method: TuningMethod | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="the old place for those of `method`")
    suffix: str | None = Field(None, max_length=64, pattern=r"^[^\x00]*$", description="kept with the job")
    seed: int | None = Field(None, ge=0, lt=2**32)
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="there are none")

    def chosen(self) -> Hyperparameters:
        """The hyperparameters, wherever they are given."""
        if self.method is None and self.hyperparameters is not None:
            return self.hyperparameters
        return (self.method or TuningMethod()).supervised.hyperparameters


class AskedTuning(BaseModel):
    """What the request of a fine_tune job says of the way in which it was asked for."""

    validation_file: str | None
    suffix: str | None
    hyperparameters: Hyperparameters


class OpenAITuning(InstructionRequest):
    """The job behind a fine-tuning job in OpenAI's shape."""

    openai: AskedTuning


class FineTuningError(BaseModel):
    """Why a fine-tuning job failed."""

    code: str
    message: str
    param: str | None = None


class FineTuningJob(BaseModel):
    """A fine-tuning job and how far it is; times are Unix seconds."""

    id: str = Field(description="also of the job under /v1/jobs")
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    status: FineTuningStatus
    fine_tuned_model: str | None = Field(description="the model that it made: for chat completions and batches")
    error: FineTuningError | None
    hyperparameters: Hyperparameters
    method: TuningMethod
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="empty: measures are files of the model, see `GET /v1/models/{id}`")
    seed: int
    trained_tokens: int | None
    estimated_finish: int | None
    organization_id: str
    integrations: list[Any]
    user_provided_suffix: str | None
    metadata: Metadata | None


class FineTuningEvent(BaseModel):
    """Something that happened to a fine-tuning job; `data` is that of the job's own event."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointMetrics(BaseModel):
    """Of the model when the checkpoint was taken."""

    step: int
    full_valid_loss: float | None = None


class FineTuningCheckpoint(BaseModel):
    """A model that can be used. A job keeps the best by validation, which is the one that it makes."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int
