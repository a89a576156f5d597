"""From a catalogue entry to a language model that is ready to read: weights are safetensors or GGUF, no code is run."""

from dataclasses import dataclass
from typing import Any

import torch

from shared.language_models import LanguageModelSpec
from shared.ml.device import Precision
from shared.ml.language.conversations import ConversationTokenizer


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its own weights frozen.

    `model` is transformers' (its functions have no types); `hidden` the width of its token embeddings; `context_length`
    the tokens that it can read; `embedding_norm` the usual length of one. `fingerprint`: sha256 of its weights.
    """

    spec: LanguageModelSpec
    model: Any
    tokenizer: ConversationTokenizer
    hidden: int
    context_length: int
    embedding_norm: float
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device


def load_language_model(
    spec: LanguageModelSpec, *, device: str = "auto", precision: Precision = "auto", quantization: str = "none"
) -> LanguageModel:
    """The language model that `spec` describes. `quantization`: `none` or `4bit`.

    Raises JobError: `language_model_unavailable` if it cannot be had, `language_model_invalid` if it is none that can
    be used, `quantization_unavailable`.
    """
    raise NotImplementedError
