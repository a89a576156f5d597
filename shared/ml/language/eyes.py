"""How a vision-language model is told of a picture: the words around it, and the tokens whose place its features take.

The features themselves are an encoder's (see shared.ml.encoders.vision_tokens): the vision tower runs in the image
pool, and here only the language part is kept.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import JobError
from shared.language_models import LanguageModelSpec
from shared.ml.encoders.vision_tokens import in_one_piece

_VISION_PARTS = frozenset({"vision_model", "vision_tower", "connector", "multi_modal_projector"})

#: Those whose token types say which tokens are of pictures: these see each other, and not only what is before them.
_MARKED = frozenset({"gemma3"})


@dataclass(frozen=True)
class Eyes:
    """`placeholder` is what a chat template writes for a picture, `expanded` what the model reads in its place: in it
    stand `count` tokens `token`, for which the picture's features are put in. `is_marked`: token types say where."""

    placeholder: str
    expanded: str
    token: int
    count: int
    is_marked: bool


def load_processor(spec: LanguageModelSpec, folder: Path) -> Any:
    """transformers' processor of a vision-language model. Raises JobError (`language_model_invalid`)."""
    from transformers import AutoProcessor

    processor: Any = AutoProcessor  # its functions have no types
    try:
        return processor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise invalid(spec, f"transformers cannot read the processor of {folder}: {error}") from error


def eyes_of(spec: LanguageModelSpec, processor: Any, model: Any) -> Eyes:
    """As the processor shows them with a blank picture. Raises JobError (`language_model_invalid`)."""
    kind = model.config.model_type
    if "token_type_ids" in inspect.signature(model.forward).parameters and kind not in _MARKED:
        raise invalid(spec, f"models of the type {kind} do not read from left to right, as tuning and chat need it")
    lacking = [name for name in ("tokenizer", "image_processor", "image_token") if not hasattr(processor, name)]
    if lacking or not isinstance(getattr(model.config, "image_token_id", None), int):
        raise invalid(spec, f"it does not say how pictures come into its words ({lacking or 'image_token_id'})")
    in_one_piece(processor.image_processor)
    tokenizer, placeholder = processor.tokenizer, processor.image_token
    blank = np.full((64, 64, 3), 200, np.uint8)
    try:
        ids = processor(text=placeholder, images=[blank], add_special_tokens=False)["input_ids"][0]
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise invalid(spec, f"its processor cannot read a picture: {error}") from error
    expanded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    token = int(model.config.image_token_id)
    if token not in ids or tokenizer(expanded, add_special_tokens=False)["input_ids"] != list(ids):
        raise invalid(spec, f"what its processor writes for a picture has no image tokens: {expanded[:80]!r}")
    return Eyes(placeholder, expanded, token, list(ids).count(token), kind in _MARKED)


def drop_vision(model: Any) -> None:
    """Takes vision tower and connector off transformers' vision-language model: an encoder has them."""
    whole = model.base_model
    for name in [name for name, _ in whole.named_children() if name in _VISION_PARTS]:
        delattr(whole, name)


def invalid(spec: LanguageModelSpec, cause: str) -> JobError:
    """The error for a model that cannot be used."""
    return JobError(f"The language model {spec.id} cannot be used: {cause}.", code="language_model_invalid")
