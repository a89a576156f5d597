"""What a fine_tune job can be asked for. No heavy library is imported here: the gateway checks it at the door."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from shared.generation import JobGeneration
from shared.prompts import PromptTemplate
from shared.schemas import FeatureSource, JobOptions, JobType
from shared.strict import Strict


class Method(StrEnum):
    """What is trained: a head for classes, a head for numbers, or projections into one space."""

    CLASSIFIER = "classifier"
    REGRESSOR = "regressor"
    ALIGN = "align"


class Preset(StrEnum):
    """How much is tried: one fusion; a few fusions, the best by validation; several with several seeds, combined."""

    FAST = "fast"
    GOOD = "good"
    BEST = "best"


class TrainEncoder(StrEnum):
    """What of the encoders is trained with the head: nothing; low-rank changes of their weights; all weights; of image
    encoders, a border around every picture, while their weights stay as they are (visual prompting)."""

    FROZEN = "frozen"
    LORA = "lora"
    FULL = "full"
    BORDER = "border"


class Optimizer(StrEnum):
    """`sgd` has momentum 0.9."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Schedule(StrEnum):
    """The learning rate after its warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class FusionChoice(Strict):
    """One fusion, with its own parameters; see `GET /v1/models/fusions` for what each method takes."""

    method: Literal["concat", "weighted", "align", "gated", "low_rank", "attention", "late"] = "concat"
    parameters: dict[str, Any] = Field(default_factory=dict)


class Training(Strict):
    """How a model is trained. What is null is the preset's choice, and may differ between the models that it tries."""

    epochs: int | None = Field(None, ge=1, le=10_000, description="at most; early stopping ends sooner")
    batch_size: int | None = Field(None, ge=1, le=65_536)
    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float | None = Field(None, gt=0, le=10)
    weight_decay: float | None = Field(None, ge=0, le=10)
    schedule: Schedule = Schedule.COSINE
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    patience: int | None = Field(
        None, ge=1, le=10_000, description="epochs without a better validation loss before the end"
    )
    hidden: int | None = Field(None, ge=0, le=8192, description="width of each modality's embedding; 0: none")
    head: int | None = Field(None, ge=0, le=8192, description="width of the head's hidden layer; 0: linear")
    dropout: float | None = Field(None, ge=0, lt=1)
    modality_dropout: float | None = Field(
        None, ge=0, lt=1, description="chance that an item loses a modality in training"
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    loss: Literal["auto", "cross_entropy", "bce", "mse"] = Field(
        "auto", description="`mse` of a regressor is Σ(y−ŷ)²/2N, so that its gradient is the mean error"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`auto`: bf16 on a GPU that has it, fp32 on the CPU"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(0, ge=0, lt=2**32)


class EncoderTraining(Strict):
    """How encoders are trained on a job's items. What is null depends on what is trained: all weights of a pretrained
    encoder, an adapter to it (LoRA), a border around its pictures, or an encoder from scratch."""

    epochs: int | None = Field(None, ge=1, le=1000, description="at most; null: 3, border 20, from scratch 60")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="null: 2e-5, LoRA 2e-4, border 1e-2, from scratch 1e-3"
    )
    batch_size: int = Field(16, ge=1, le=1024)
    weight_decay: float = Field(0.01, ge=0, le=10)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="epochs without a better validation loss before the end; null: 2, border 5, from scratch 10",
    )
    lora_rank: int = Field(8, ge=1, le=256)
    border: float = Field(0.125, gt=0, lt=0.5, description="thickness, as a share of the picture's shorter side")


class Splitting(Strict):
    """How items without a given `split` are divided: at random, each class in the same proportions."""

    validation: float = Field(0.15, gt=0, lt=0.9)
    test: float = Field(0.2, gt=0, lt=0.9)
    folds: int | None = Field(None, ge=2, le=20, description="k-fold cross-validation beside the final model")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.validation + self.test > 0.9:
            raise ValueError("validation and test together must leave a tenth of the items for training")
        return self


class Search(Strict):
    """A search for better settings of training, judged by validation only."""

    trials: int = Field(20, ge=2, le=500)
    seconds: float | None = Field(None, gt=0, description="no new trial is begun after this")


class FineTuneRequest(JobOptions, FeatureSource):
    """A job that trains a model on a feature set, or on items that are turned into one first."""

    type: Literal[JobType.FINE_TUNE]
    method: Method = Field(
        Method.CLASSIFIER,
        description="`classifier` learns `label`; `regressor` learns `target`, by the loss Σ(y−ŷ)²/2N (scores have MSE "
        "without the half); `align` brings what belongs together near each other",
    )
    preset: Preset = Preset.GOOD
    fusion: FusionChoice | None = Field(None, description="instead of those that the preset tries")
    training: Training = Field(default_factory=Training)
    splitting: Splitting = Field(default_factory=Splitting)
    search: Search | None = None
    multi_label: bool | None = Field(None, description="null: several labels if any item has more than one")
    train_encoder: TrainEncoder = Field(
        TrainEncoder.FROZEN, description="what of each encoder is trained, on items, before they are encoded with it"
    )
    encoder_training: EncoderTraining = Field(default_factory=EncoderTraining)
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="more failed items than this, and nothing is trained"
    )


#: Methods that are trained by language models, which read the items' words themselves.
LANGUAGE_METHODS = frozenset({"instruction", "prompt"})


def reads_text(request: Mapping[str, Any]) -> bool:
    """Whether the job of a stored request gives its items' text and messages to a language model as they are."""
    return request.get("method") in LANGUAGE_METHODS or bool(request.get("generates"))


#: Fields of a predict job that language models alone have.
_GENERATING = frozenset({"generation", "prompt", "generates"})


class PredictRequest(JobOptions, FeatureSource):
    """A job that applies a model to a feature set, or to items that are turned into one first."""

    type: Literal[JobType.PREDICT]
    model: str = Field(
        description="of a fine_tune job, or a language model of the catalogue",
        examples=["model-01k9w0c3v8e6m5j2k1x7r4t9qz"],
    )
    contributions: bool = Field(True, description="how much each modality moved each prediction (Shapley values)")
    generation: JobGeneration | None = Field(None, description="of a language model: how its answers are drawn")
    prompt: PromptTemplate | None = Field(
        None, description="of a language model: how an item without messages is put to it; null: as in its training"
    )
    generates: bool = Field(False, description="the model is a language model; filled in")

    @model_validator(mode="after")
    def _has_a_modality(self) -> Self:
        """In place of the one of other jobs: a language model reads text itself."""
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Workers of the first release, beside which this one may run, refuse fields that they do not know.
        return {name: value for name, value in dump(self).items() if name not in _GENERATING or value}


class IndexRequest(JobOptions, FeatureSource):
    """A job that makes a feature set, or items that are turned into one first, searchable by any modality."""

    type: Literal[JobType.INDEX]
    model: str = Field(
        description="of the method `align`: search is in its space", examples=["model-01k9w0c3v8e6m5j2k1x7r4t9qz"]
    )
