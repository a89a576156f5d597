"""A language model with what was learned for it: an adapter in PEFT's layout, and projectors of pictures and sounds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from shared.conversations import Message
from shared.language_tuning import Adapter
from shared.ml.language.conversations import Encoded
from shared.ml.language.loading import LanguageModel
from shared.ml.language.soft_tokens import Media, ProjectorConfig
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.schemas import Strict

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROJECTOR, CONFIG = "projector.safetensors", "config.json"


class TunedConfig(Strict):
    """`config.json`: with adapter, projectors and base model, the whole."""

    format: Literal[1] = 1
    language_model: str = Field(description="id of the base model in the catalogue")
    fingerprint: str = Field(description="of its weights")
    adapter: Adapter
    projectors: dict[Modality, ProjectorConfig] = Field(default_factory=dict)
    prompt: PromptTemplate | None = Field(None, description="how an item without messages is put to it")
    labels: list[str] = Field(default_factory=list, description="what it chooses among, if items have labels")
    max_length: int = Field(description="tokens of a conversation in training")


@dataclass(frozen=True)
class Batch:
    """Conversations on the device, padded on the left: their ends are in the last column.

    `embeddings` [b, n, hidden], `mask` int64 [b, n], `labels` int64 [b, n] (IGNORED where nothing is learned). `cache`:
    what was read before (prefix tuning), p tokens, of which `mask` has p columns more on the left.
    """

    embeddings: Tensor
    mask: Tensor
    labels: Tensor
    cache: Any = None


class TunedLanguageModel:
    """Base model, adapter and projectors. Several can stand on one base model; `active` says which of them speaks."""

    def __init__(self, base: LanguageModel, config: TunedConfig, projectors: nn.ModuleDict):
        self.base, self.config, self.projectors = base, config, projectors

    @classmethod
    def plain(cls, base: LanguageModel) -> Self:
        """The base model as it is."""
        raise NotImplementedError

    @classmethod
    def load(cls, files: Mapping[str, bytes], base: LanguageModel) -> Self:
        """The model in these files; others beside them are passed over.

        Raises JobError (`language_model_changed`) if it was trained on other weights than those of `base`.
        """
        raise NotImplementedError

    def files(self) -> dict[str, bytes]:
        """`adapter_model.safetensors` and `adapter_config.json` as PEFT reads them, unless there is no adapter;
        `projector.safetensors`, if there is a projector; `config.json`."""
        raise NotImplementedError

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the base model's layers compute with this one's adapter, and no other's."""
        raise NotImplementedError
        yield

    def encode(
        self, conversation: Sequence[Message], media: Sequence[Media], *, answer: str | None = None, max_length: int
    ) -> Encoded:
        """See ConversationTokenizer.encode. A medium without a vector, or without a projector, has no soft tokens."""
        raise NotImplementedError

    def batch(self, encoded: Sequence[Encoded], media: Sequence[Sequence[Media]]) -> Batch:
        """Conversations and the media of each, as the model takes them; with gradients if they are switched on."""
        raise NotImplementedError

    def close(self) -> None:
        """Takes its adapter off the base model."""
        raise NotImplementedError
