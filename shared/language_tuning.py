"""What a fine_tune job of a language model can be asked for. No heavy library is imported here."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.fine_tuning import Schedule, Splitting
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.prompts import PromptTemplate
from shared.schemas import Encoders, FeatureSource, JobOptions, JobType
from shared.strict import Strict


class Adapter(StrEnum):
    """What is trained of a language model: low-rank changes of its weights, or soft prompts before its input (prompt
    tuning, P-tuning), or before each layer's (prefix tuning); `none`: the projectors of pictures and sounds alone."""

    LORA = "lora"
    PROMPT = "prompt"
    P_TUNING = "p_tuning"
    PREFIX = "prefix"
    NONE = "none"


#: Adapters that are vectors before what is read.
SOFT_PROMPTS = frozenset({Adapter.PROMPT, Adapter.P_TUNING, Adapter.PREFIX})


class LanguageTraining(Strict):
    """How a language model is tuned. What is null depends on the adapter and on how many items there are."""

    adapter: Adapter = Adapter.LORA
    lora_rank: int = Field(8, ge=1, le=256)
    lora_alpha: float | None = Field(None, gt=0, le=1024, description="null: twice the rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None, max_length=64, description="names of layers; null: all linear layers of attention and feed-forward"
    )
    virtual_tokens: int = Field(20, ge=1, le=512, description="length of a soft prompt or prefix")
    projector_tokens: int = Field(4, ge=1, le=64, description="soft tokens of one picture or sound")
    projector_epochs: int = Field(
        1, ge=0, le=100, description="before the rest: the projectors alone (the first phase of LLaVA)"
    )
    epochs: int = Field(3, ge=1, le=1000, description="at most; early stopping ends sooner")
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="null: LoRA 2e-4, soft prompts 3e-2, others 1e-3"
    )
    projector_learning_rate: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0, le=10)
    batch_size: int = Field(8, ge=1, le=1024, description="conversations of one forward pass")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="forward passes of one step")
    packing: bool = Field(
        False, description="several conversations in one row, which do not see each other; not with soft prompts"
    )
    max_length: int = Field(
        512, ge=16, le=131_072, description="tokens; what is longer loses the start of its question"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    schedule: Schedule = Schedule.COSINE
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    patience: int = Field(2, ge=1, le=1000, description="epochs without a better validation loss before the end")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    quantization: Literal["none", "4bit"] = Field("none", description="of the model's own weights, where a GPU can")
    max_new_tokens: int = Field(64, ge=1, le=4096, description="of an answer in evaluation")
    evaluated_items: int = Field(
        200,
        ge=1,
        le=100_000,
        description="test items that are answered, at most; of `hard` prompts, validation items too",
    )
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _can_be_packed(self) -> Self:
        if self.packing and self.adapter in SOFT_PROMPTS:
            raise ValueError("a soft prompt stands before each conversation: leave out packing, or train with lora")
        return self


class LanguageSource(JobOptions, FeatureSource):
    """Items for a language model, which reads their text itself: only pictures and sounds are encoded."""

    encoders: Encoders = Field(
        default_factory=lambda: Encoders(text=None),
        description="of pictures and sounds; `text` left out: none. `image` left out: a language model that reads "
        "pictures itself does so with its own vision tower. A tuned one goes on with those of its training",
    )
    prompt: PromptTemplate | str | None = Field(
        None, description="how an item without messages is put to the model: a template, or the id of a stored prompt"
    )
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="more failed items than this, and nothing is trained"
    )

    @model_validator(mode="after")
    def _has_a_modality(self) -> Self:
        """In place of the one of other jobs: text needs no encoder, and gets none that nobody asked for."""
        if "text" not in self.encoders.model_fields_set:
            self.encoders = self.encoders.model_copy(update={"text": None})
        return self


class InstructionRequest(LanguageSource):
    """A job that tunes a language model to answer as the items do: their last assistant message, their `target`, or
    their `label`."""

    type: Literal[JobType.FINE_TUNE]
    method: Literal["instruction"]
    language_model: str = Field(
        DEFAULT_LANGUAGE_MODEL, description="of the catalogue, or the id of a tuned one, whose training goes on"
    )
    training: LanguageTraining = Field(default_factory=LanguageTraining)
    splitting: Splitting = Field(default_factory=Splitting)


class How(StrEnum):
    """What a prompt is: words as they are, nothing trained (`hard`); learned vectors before the names of classes in the
    text tower of a dual encoder (`context`, CoOp); or before what a language model reads (`soft`)."""

    HARD = "hard"
    CONTEXT = "context"
    SOFT = "soft"


class ContextTraining(Strict):
    """How context vectors are learned (CoOp: Zhou et al., "Learning to prompt for vision-language models", IJCV
    2022)."""

    length: int = Field(4, ge=1, le=64, description="vectors before the name of a class; unless `words` are given")
    words: str | None = Field(
        None, min_length=1, max_length=256, description="where they start, such as `a photo of a`; null: at random"
    )
    epochs: int = Field(50, ge=1, le=1000, description="at most; early stopping ends sooner")
    learning_rate: float = Field(2e-3, gt=0, le=10)
    batch_size: int = Field(32, ge=1, le=65_536)
    patience: int = Field(10, ge=1, le=1000, description="epochs without a better validation loss before the end")


class PromptRequest(LanguageSource):
    """A job that makes a classifier of a prompt: of a language model, which says how likely the words of each label
    are, or of a dual encoder, which compares items with what its text tower makes of the labels."""

    type: Literal[JobType.FINE_TUNE]
    method: Literal["prompt"]
    how: How = How.HARD
    prompts: list[PromptTemplate | str] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="instead of `prompt`: each is tried, and the one that is best on validation items is kept",
    )
    language_model: str | None = Field(
        None,
        description="of the catalogue, or the id of a tuned one; null: a dual encoder, whose towers are `encoders`",
    )
    text_encoder: str | None = Field(
        None, description="the tower that reads class templates; null: the one of the same model as `encoders`"
    )
    calibrated: bool = Field(
        True,
        description="of a language model, `hard`: labels that it prefers without an item are held back (contextual "
        "calibration, Zhao et al. 2021)",
    )
    scale: float = Field(100.0, gt=0, le=1000, description="of a dual encoder: what cosines are multiplied by")
    context: ContextTraining = Field(default_factory=ContextTraining)
    training: LanguageTraining = Field(default_factory=lambda: LanguageTraining(adapter=Adapter.PROMPT))
    splitting: Splitting = Field(default_factory=Splitting)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("give either prompt or prompts")
        if self.how is How.CONTEXT and self.language_model is not None:
            raise ValueError("how `context` is for dual encoders: leave language_model out")
        if self.how is How.SOFT and self.language_model is None:
            raise ValueError("how `soft` is for language models: give language_model")
        if self.how is not How.HARD and self.prompts is not None:
            raise ValueError("prompts are tried with how `hard`; give one prompt")
        if self.how is How.SOFT and self.training.adapter not in SOFT_PROMPTS:
            raise ValueError("how `soft` trains the adapters prompt, p_tuning and prefix")
        if self.language_model is not None and self.text_encoder is not None:
            raise ValueError("give either language_model or text_encoder")
        return self

    @property
    def templates(self) -> list[PromptTemplate | str]:
        """Those that are tried; of stored prompts the ids, until the gateway has put these in."""
        return self.prompts or [self.prompt or PromptTemplate()]
