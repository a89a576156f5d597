"""What a job, or a chat, can be told besides its items; the gateway's defaults hold for what is left out."""

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

from shared.fine_tuning import FusionChoice, Method, Preset, Search, Splitting, TrainEncoder, Training
from shared.generation import JobGeneration
from shared.language_tuning import ContextTraining, How
from shared.preprocessing import Preprocessing
from shared.prompts import PromptTemplate
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


class PromptOptions(TypedDict, total=False):
    """Of a fine_tune job of the method `prompt`."""

    how: How | str
    prompt: PromptTemplate | Mapping[str, Any] | str
    prompts: Sequence[PromptTemplate | Mapping[str, Any] | str]
    language_model: str
    text_encoder: str
    calibrated: bool
    scale: float
    context: ContextTraining | Mapping[str, Any]


class FineTuneOptions(TrainingOptions, PromptOptions, total=False):
    """Of a fine_tune job."""

    fusion: FusionChoice | Mapping[str, Any]


class PredictOptions(JobOptions, total=False):
    """Of a predict job."""

    model: Required[str]
    contributions: bool
    generation: JobGeneration | Mapping[str, Any]
    prompt: PromptTemplate | Mapping[str, Any]


class IndexOptions(JobOptions, total=False):
    """Of an index job."""

    model: Required[str]


class AnyJobOptions(TrainingOptions, PromptOptions, total=False):
    """Of jobs of all types; which of them a job's type has is the gateway's to say."""

    fusion: Fusion | FusionChoice | Mapping[str, Any]
    model: str
    contributions: bool
    generation: JobGeneration | Mapping[str, Any]


class ChatOptions(TypedDict, total=False):
    """Of a chat: how the answer is drawn, and how long one waits for its beginning."""

    max_completion_tokens: int
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    seed: int
    timeout_seconds: float
