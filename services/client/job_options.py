"""What a job can be told besides where its items are; the gateway's defaults hold for what is left out."""

from collections.abc import Mapping
from typing import Any, Required, TypedDict

from shared.fine_tuning import FusionChoice, Method, Preset, Search, Splitting, TrainEncoder, Training
from shared.preprocessing import Preprocessing
from shared.schemas import Encoders, Fusion


class JobOptions(TypedDict, total=False):
    """Of every type of job."""

    shard_size: int
    priority: int
    timeout_seconds: int
    metadata: Mapping[str, str]


class EncodingOptions(JobOptions, total=False):
    """Of jobs that choose how items are encoded."""

    encoders: Encoders | Mapping[str, str | None]
    preprocessing: Preprocessing | Mapping[str, Any]


class FeaturesOptions(EncodingOptions, total=False):
    """Of a features job."""

    fusion: Fusion | Mapping[str, Any]


class TrainingOptions(EncodingOptions, total=False):
    """Of a fine_tune job, but for its fusion."""

    method: Method | str
    preset: Preset | str
    training: Training | Mapping[str, Any]
    splitting: Splitting | Mapping[str, Any]
    search: Search | Mapping[str, Any]
    multi_label: bool
    train_encoder: TrainEncoder | str
    max_failed_fraction: float


class FineTuneOptions(TrainingOptions, total=False):
    """Of a fine_tune job."""

    fusion: FusionChoice | Mapping[str, Any]


class PredictOptions(JobOptions, total=False):
    """Of a predict job."""

    model: Required[str]
    contributions: bool


class IndexOptions(JobOptions, total=False):
    """Of an index job."""

    model: Required[str]


class AnyJobOptions(TrainingOptions, total=False):
    """Of jobs of all types; which of them a job's type has is the gateway's to say."""

    fusion: Fusion | FusionChoice | Mapping[str, Any]
    model: str
    contributions: bool
