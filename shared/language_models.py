"""The language models as data, so that the gateway can list them without importing torch.

`language_models.json` beside this file is what ships; a user's file of the same form
(`TRIVIUM_LANGUAGE_MODELS_FILE`) adds any causal language model of the Hugging Face hub, or by local path.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from shared.errors import InvalidRequestError

DEFAULT_LANGUAGE_MODEL = "gemma3-270m"


class LanguageModelSpec(BaseModel):
    """One pretrained language model.

    `source`: a Hugging Face id, a local path, or `package:NAME`. `revision` pins a hub version. `image_encoder`, of the
    loader `image_text_to_text`: the encoder that is this model's own vision tower (loader `vision_tokens`, of the same
    source). `options` are the loader's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")
    loader: Literal["transformers", "gguf", "image_text_to_text"]
    source: str
    revision: str | None = None
    image_encoder: str | None = None
    licence: str = "unknown"
    description: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_vision_tower(self) -> Self:
        if self.image_encoder is not None and self.loader != "image_text_to_text":
            raise ValueError("image_encoder is for the loader image_text_to_text")
        return self


LanguageModels = Mapping[str, LanguageModelSpec]


def load_language_models(path: str | Path | None = None) -> LanguageModels:
    """Those that ship, and those of the JSON file at `path`, by id; a later one of the same id replaces the earlier.

    Raises InvalidRequestError (`invalid_catalog`) naming the file and the entry that is wrong.
    """
    shipped = _read(Path(__file__).with_name("language_models.json"))
    return {spec.id: spec for spec in (shipped if path is None else [*shipped, *_read(Path(path))])}


def find_language_model(models: LanguageModels, id: str, *, param: str = "language_model") -> LanguageModelSpec:
    """Raises InvalidRequestError (`unknown_language_model`)."""
    if id not in models:
        message = f"There is no language model {id!r}; there are: {', '.join(models)}."
        raise InvalidRequestError(message, code="unknown_language_model", param=param)
    return models[id]


def _read(path: Path) -> list[LanguageModelSpec]:
    try:
        return TypeAdapter(list[LanguageModelSpec]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"The language models file {path} cannot be used: {error}"
        raise InvalidRequestError(message, code="invalid_catalog") from error
