"""What goes in and out: items, job requests, and the objects that the gateway answers with.

No heavy library is imported here: every service, the gateway included, reads these.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from shared.items import Item
from shared.preprocessing import Preprocessing
from shared.queues import Modality, Stage
from shared.strict import Strict

T = TypeVar("T")


class JobType(StrEnum):
    """What a job does."""

    FEATURES = "features"
    FINE_TUNE = "fine_tune"
    PREDICT = "predict"
    INDEX = "index"


class JobStatus(StrEnum):
    """`queued → planning → running → succeeded | failed`, `cancelling → cancelled`."""

    QUEUED = "queued"
    PLANNING = "planning"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchStatus(StrEnum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class FineTuningStatus(StrEnum):
    """OpenAI's states of a fine-tuning job."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OpenAIStatuses(NamedTuple):
    """What OpenAI's clients are told of a job: as a batch, before and after its files are written, and as fine-tuning.

    A fine-tuning job that is being cancelled counts as cancelled: nothing can come of it any more.
    """

    batch: BatchStatus
    finished_batch: BatchStatus
    fine_tuning: FineTuningStatus


OPENAI_STATUSES: dict[JobStatus, OpenAIStatuses] = {
    job: OpenAIStatuses(BatchStatus(batch), BatchStatus(finished), FineTuningStatus(fine_tuning))
    for job, batch, finished, fine_tuning in (
        (JobStatus.QUEUED, "validating", "validating", "validating_files"),
        (JobStatus.PLANNING, "validating", "validating", "validating_files"),
        (JobStatus.RUNNING, "in_progress", "in_progress", "running"),
        (JobStatus.SUCCEEDED, "finalizing", "completed", "succeeded"),
        (JobStatus.FAILED, "finalizing", "failed", "failed"),
        (JobStatus.CANCELLING, "cancelling", "cancelling", "cancelled"),
        (JobStatus.CANCELLED, "cancelling", "cancelled", "cancelled"),
    )
}

#: Failures of a job that are none of its batch: requests that all got an error, and those that came too late.
BATCH_FAILURES: dict[str, BatchStatus] = {
    "every_item_failed": BatchStatus.COMPLETED,
    "deadline_exceeded": BatchStatus.EXPIRED,
}


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]+$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class Input(Strict):
    """Where a job's manifest is: an uploaded file (JSONL, Parquet, tar, zip) or an S3 prefix."""

    file_id: str | None = Field(None, examples=["file-01k9w0c3v8e6m5j2k1x7r4t9qz"])
    s3_prefix: str | None = Field(None, examples=["s3://trivium/imports/default/2026-11/"])

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.file_id is None) == (self.s3_prefix is None):
            raise ValueError("give either file_id or s3_prefix")
        return self

    @field_validator("s3_prefix")
    @classmethod
    def _is_a_prefix(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,62}/(?!/)[^\x00-\x1f]{0,900}", value):
            raise ValueError("an S3 prefix looks like s3://bucket/folder/")
        if value is not None and ".." in value.split("/"):
            raise ValueError("an S3 prefix has no parent folders in it")
        return value


class Encoders(Strict):
    """The encoder of each modality by id, or by that of a model that a job made; `null` leaves the modality out."""

    text: str | None = "all-minilm-l6-v2"
    image: str | None = "mobilenet_v2"
    audio: str | None = "mfcc-stats"

    def chosen(self) -> dict[Modality, str]:
        """The modalities that are wanted, in the order of fusion."""
        return {m: id for m in Modality if (id := getattr(self, m.value)) is not None}


class FusionMethod(StrEnum):
    """How the vectors of an item become one. One file each in `shared/ml/fusion`."""

    NONE = "none"
    CONCAT = "concat"
    WEIGHTED = "weighted"
    ALIGN = "align"
    GATED = "gated"
    LOW_RANK = "low_rank"
    ATTENTION = "attention"
    LATE = "late"


#: The methods that need no training, which is what a features job can be asked for.
UntrainedFusion = Literal[FusionMethod.NONE, FusionMethod.CONCAT, FusionMethod.WEIGHTED]


def _not_all_zero(weights: dict[Modality, float]) -> dict[Modality, float]:
    if weights and not any(weights.values()):
        raise ValueError("at least one weight must be above zero")
    return weights


Weights = Annotated[dict[Modality, Annotated[float, Field(ge=0, le=1e6)]], AfterValidator(_not_all_zero)]


class Fusion(Strict):
    """`concat` joins the vectors (zeros where one is missing); `weighted` scales each to length w first; a model that a
    fine_tune job made gives its own."""

    method: UntrainedFusion = FusionMethod.CONCAT
    weights: Weights = Field(default_factory=dict)
    model: str | None = Field(None, description="instead of a method", examples=["model-01k9w0e1a4b7c2d5f8g3h6j9km"])
    dimension: int | None = Field(None, description="of the model's fused vectors; filled in")

    @model_validator(mode="after")
    def _method_or_model(self) -> Self:
        if self.model is not None and self.method is not FusionMethod.CONCAT:
            raise ValueError("give either method or model")
        return self

    @model_validator(mode="after")
    def _weights_belong_to_weighted(self) -> Self:
        if self.weights and self.method is not FusionMethod.WEIGHTED:
            raise ValueError('weights are used by the method "weighted" only')
        return self

    @model_serializer(mode="wrap")
    def _without_nulls(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Workers of the first release, beside which this one may run, refuse fields that they do not know.
        return {name: value for name, value in dump(self).items() if value is not None}

    def parameters(self) -> dict[str, Any]:
        """Those of the method, as in `shared.fusion_parameters`."""
        return {"weights": self.weights} if self.method is FusionMethod.WEIGHTED else {}


class JobOptions(Strict):
    """What every job can be given."""

    priority: int = Field(0, ge=-10, le=10, description="higher goes first")
    timeout_seconds: int | None = Field(
        None, ge=1, le=2_592_000, description="the job fails unless it has ended so long after it was accepted"
    )
    metadata: Metadata = Field(default_factory=dict)


class ItemSource(Strict):
    """Items, and how they become vectors."""

    items: list[Item] | None = Field(None, description="the items themselves, for small jobs", min_length=1)
    input: Input | None = Field(None, description="or where the manifest is")
    encoders: Encoders = Field(default_factory=Encoders)
    preprocessing: Preprocessing = Field(default_factory=Preprocessing)
    shard_size: int = Field(256, ge=1, le=4096, description="items in one shard")

    @model_validator(mode="after")
    def _has_a_modality(self) -> Self:
        if not self.encoders.chosen():
            raise ValueError("at least one modality needs an encoder")
        return self


class FeaturesRequest(JobOptions, ItemSource):
    """A job that turns items into vectors and one fused vector each."""

    type: Literal[JobType.FEATURES] = JobType.FEATURES
    fusion: Fusion = Field(default_factory=Fusion)

    @model_validator(mode="after")
    def _items_or_input(self) -> Self:
        if (self.items is None) == (self.input is None):
            raise ValueError("give either items or input")
        return self


class FeatureSource(ItemSource):
    """A feature set that a job made, or items that become one."""

    features: str | None = Field(None, description="or the job whose feature set is used", examples=["job-01k9…"])

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if sum(source is not None for source in (self.items, self.input, self.features)) != 1:
            raise ValueError("give one of items, input and features")
        return self


class ErrorBody(BaseModel):
    """What went wrong, for people (`message`) and programs (`code`)."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


class StageProgress(BaseModel):
    """How far one stage of a job is."""

    shards_total: int
    shards_done: int
    shards_failed: int
    items_total: int
    items_done: int
    items_cached: int
    started_at: float | None
    finished_at: float | None


class ItemCounts(BaseModel):
    """How the items of a job ended; `total` is known once the job is planned."""

    total: int
    succeeded: int
    partial: int
    failed: int


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Job(BaseModel):
    """A job as the gateway shows it."""

    id: str
    object: Literal["job"] = "job"
    type: JobType
    status: JobStatus
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    cancel_requested_at: int | None = None
    deadline_at: int | None = None
    input_bytes: int = Field(0, description="what it was given to read; of an S3 prefix, once it is planned")
    items: ItemCounts
    stages: dict[Stage, StageProgress]
    request: dict[str, Any]
    metadata: Metadata
    models: list[str] = Field(
        default_factory=list, description="what it made, in this order: see `GET /v1/models/{id}`"
    )
    error: JobError | None = None


class File(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    content_type: str
    sha256: str
    status: Literal["processed"] = "processed"


class ItemErrorEntry(BaseModel):
    """One modality of one item that could not be used (`modality` null: the whole item)."""

    object: Literal["item_error"] = "item_error"
    id: str = Field(description="place of this entry in the list, for `after`")
    item_id: str
    item_index: int
    modality: Modality | None
    code: str
    message: str


class JobEvent(BaseModel):
    """Something that happened to a job; `id` resumes a stream (`Last-Event-ID`)."""

    id: str
    object: Literal["job.event"] = "job.event"
    type: str
    created_at: float
    data: dict[str, Any]


ModelKind = Literal[
    "encoder", "fitted_encoder", "classifier", "regressor", "align", "language_model", "instruction", "prompt"
]


class FineTuned(BaseModel):
    """What a fine_tune job made: what it takes, what it says, and how well (on items it was not trained on)."""

    encoders: dict[Modality, str] = Field(description="whose vectors it takes")
    fusions: list[str]
    classes: list[str] = Field(description="of a classifier, in the order of its probabilities")
    multi_label: bool = False
    metrics: dict[str, Any]


class ModelEntry(BaseModel):
    """Anything in the registry: a built-in encoder, or what a job made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "trivium"
    kind: ModelKind = "encoder"
    modality: Modality | None = Field(description="null: of all its modalities")
    dimension: int | None = Field(description="null: a language model, which makes words and not vectors")
    loader: str
    source: str = ""
    revision: str | None = None
    licence: str = "unknown"
    description: str = ""
    job_id: str | None = None
    fine_tuned: FineTuned | None = None
    files: list[str] = Field(default_factory=list, description="what can be downloaded of it")


class WorkerEntry(BaseModel):
    """A worker process as last heard from."""

    id: str
    object: Literal["worker"] = "worker"
    pool: str
    host: str
    pid: int
    version: str
    protocol: int = Field(1, description="the highest protocol of shards that it understands")
    started_at: float
    last_seen_at: float
    state: Literal["idle", "busy", "draining"]
    loaded_models: list[str]
    current_shards: list[dict[str, Any]]


class Part(BaseModel):
    """One Parquet part of a feature set."""

    index: int
    key: str
    rows: int
    bytes: int
    sha256: str
    url: str | None = Field(None, description="presigned link")


class Deleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: str
    deleted: Literal[True] = True


class KeyRequest(Strict):
    """A new API key. Its tenant is made by naming it here."""

    name: str = Field("", max_length=128, pattern=r"^[^\x00]*$")
    tenant: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    scope: Literal["user", "admin"] = "user"


class Key(BaseModel):
    """An API key as it can be shown: never the key itself, only its last characters."""

    id: str
    object: Literal["key"] = "key"
    tenant: str
    name: str
    scope: Literal["user", "admin"]
    hint: str
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None


class NewKey(Key):
    """The answer to the creation of a key: the only place where `key` is ever shown."""

    key: str


class Page(BaseModel, Generic[T]):
    """A part of a list; `last_id` as `after` gives the next part."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class Readiness(BaseModel):
    """Whether the gateway can work; without Redis jobs are slower, and nothing is predicted at once."""

    status: Literal["ready", "unavailable"]
    postgres: bool
    s3: bool
    redis: bool
