"""From a catalogue entry to a language model that is ready to read: safetensors, or a packaged GGUF; no code is run."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from shared.errors import JobError
from shared.language_models import LanguageModelSpec
from shared.ml import sources
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.loading import digest_of
from shared.ml.language.conversations import ConversationTokenizer
from shared.ml.language.eyes import Eyes, drop_vision, eyes_of, invalid, load_processor
from shared.ml.language.gguf import unpacked
from shared.ml.torchvision_shim import make_torchvision_importable

Quantization = Literal["none", "4bit"]

#: The usual length of a token's embedding is measured on so many of them.
_MEASURED = 1024


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its own weights frozen.

    `model` is transformers' (its functions have no types); `hidden` the width of its token embeddings; `context_length`
    the tokens that it can read; `embedding_norm` the usual length of one. `fingerprint`: sha256 of its weights.
    `eyes`: of one that reads pictures itself.
    """

    spec: LanguageModelSpec
    model: Any
    tokenizer: ConversationTokenizer
    hidden: int
    context_length: int
    embedding_norm: float
    fingerprint: str
    eyes: Eyes | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device


def load_language_model(
    spec: LanguageModelSpec,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    quantization: Quantization = "none",
) -> LanguageModel:
    """The language model that `spec` describes; a hub model is fetched.

    Raises JobError: `language_model_unavailable` if it cannot be had, `language_model_invalid` if it is none that can
    be used, `quantization_unavailable`.
    """
    place = choose_device(device)
    options = _quantized(place, quantization)
    make_torchvision_importable()
    _be_quiet()
    try:
        folder, fingerprint = _folder(spec)
    except sources.SourceMissingError as error:
        message = f"The language model {spec.id} cannot be loaded: {error}."
        raise JobError(message, code="language_model_unavailable") from error
    model = _read(spec, folder, dtype=choose_dtype(place, precision), **options)
    tokenizer, eyes = _reader(spec, folder, model)
    if not options:
        model.to(place)
    model.eval().requires_grad_(False)
    words = model.get_input_embeddings()
    ids = torch.linspace(0, words.num_embeddings - 1, _MEASURED, device=words.weight.device).long()
    with torch.inference_mode():
        sample = words(ids).float()
    return LanguageModel(
        spec, model, tokenizer,
        hidden=sample.shape[1], context_length=_context_length(model), embedding_norm=float(sample.norm(dim=1).mean()),
        fingerprint=fingerprint, eyes=eyes,
    )  # fmt: skip


def _reader(spec: LanguageModelSpec, folder: Path, model: Any) -> tuple[ConversationTokenizer, Eyes | None]:
    """What makes tokens of conversations; of a vision-language model its vision part, which nobody asks, is dropped."""
    if spec.loader != "image_text_to_text":
        return ConversationTokenizer(_fast(spec, _tokenizer(spec, folder))), None
    processor = load_processor(spec, folder)
    eyes = None if spec.image_encoder is None else eyes_of(spec, processor, model)
    drop_vision(model)
    tokenizer = _fast(spec, processor.tokenizer)
    in_parts = bool(processor.chat_template)
    if in_parts:
        tokenizer.chat_template = processor.chat_template
    return ConversationTokenizer(tokenizer, eyes, in_parts=in_parts), eyes


def _folder(spec: LanguageModelSpec) -> tuple[Path, str]:
    """Where its files are, and its fingerprint. Raises SourceMissingError."""
    if spec.loader == "gguf":
        return unpacked(spec)
    if spec.source.startswith("package:"):
        folder = sources.in_package(spec.source)
    else:
        local = sources.is_local(spec.source)
        folder = sources.in_folder(spec.source) if local else sources.from_hub(spec.source, spec.revision)
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise invalid(spec, f"{folder} has no safetensors weights; other formats can run code as they are read")
    return folder, digest_of(weights)


def _read(spec: LanguageModelSpec, folder: Path, **options: Any) -> Any:
    import transformers

    vision = spec.loader == "image_text_to_text"
    auto: Any = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    try:
        model, report = auto.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True,
            **options,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise invalid(spec, f"transformers cannot read {folder}: {error}") from error
    if report["missing_keys"]:
        missing = min(report["missing_keys"])
        raise invalid(spec, f"the checkpoint lacks weights of its own architecture, {missing} for one")
    return model


def _tokenizer(spec: LanguageModelSpec, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise invalid(spec, f"transformers cannot read the tokenizer of {folder}: {error}") from error


def _fast(spec: LanguageModelSpec, tokenizer: Any) -> Any:
    if not tokenizer.is_fast:
        raise invalid(spec, "its tokenizer has no fast form (tokenizer.json)")
    return tokenizer


def _quantized(device: torch.device, quantization: Quantization) -> dict[str, Any]:
    """What transformers is told. Raises JobError (`quantization_unavailable`)."""
    if quantization == "none":
        return {}
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        message = (
            "4-bit weights need a CUDA GPU and the package bitsandbytes on the worker; set training.quantization to "
            '"none".'
        )
        raise JobError(message, code="quantization_unavailable", param="training.quantization")
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    config = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": {"": device}}


def _context_length(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2048)


def _be_quiet() -> None:
    from transformers.utils import logging

    quiet: Any = logging  # its functions have no types
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
