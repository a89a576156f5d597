"""The encoders as data, so that the gateway can list them without importing torch.

`catalog.json` beside this file is what ships; `load_catalog` adds the entries of a user's file of the same form
(`TRIVIUM_ENCODERS_FILE`), so that any Hugging Face or torchvision model, by id or local path, becomes an encoder
without code.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import InvalidRequestError
from shared.fine_tuning import TrainEncoder
from shared.queues import Modality

Loader = Literal[
    "transformers", "vision_tokens", "torchvision", "mfcc_stats", "speaker", "word2vec", "log_mel_cnn", "hashing"
]  # fmt: skip

#: How a fine_tune job can train the encoders of a loader (a border: those of pictures); others stay as they are.
TRAINING: Mapping[str, frozenset[TrainEncoder]] = {
    "transformers": frozenset({TrainEncoder.LORA, TrainEncoder.FULL, TrainEncoder.BORDER}),
    "torchvision": frozenset({TrainEncoder.FULL, TrainEncoder.BORDER}),
    "log_mel_cnn": frozenset({TrainEncoder.FULL}),
}


class EncoderSpec(BaseModel):
    """One encoder: a named, versioned model that maps one modality to vectors.

    `source` is what the loader resolves: `package:NAME[/PATH]` (weights inside an installed package), a Hugging Face
    or torchvision id, or a local path. `revision` pins a hub version. `options` are the loader's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")
    modality: Modality
    dimension: int = Field(gt=0, le=4_194_304)
    loader: Loader
    source: str = ""
    revision: str | None = None
    licence: str = "unknown"
    description: str = ""
    fitted: bool = Field(default=False, description="fitted on the job's own items before they are encoded")
    supervised: bool = Field(default=False, description="fitted to the items' labels or targets")
    options: dict[str, Any] = Field(default_factory=dict)

    def is_trained(self, how: TrainEncoder) -> bool:
        """Whether a job that asks for this trains it on the labels or targets of its items."""
        return self.supervised or how in self.training

    @property
    def training(self) -> frozenset[TrainEncoder]:
        """How a fine_tune job can train it."""
        known = TRAINING.get(self.loader, frozenset())
        return known if self.modality is Modality.IMAGE else known - {TrainEncoder.BORDER}

    def is_fitted(self, how: TrainEncoder) -> bool:
        """Whether a job that asks for this makes a model of it before it encodes anything."""
        return self.fitted or self.is_trained(how)


class StoredFile(BaseModel):
    """A file of a model in object storage."""

    key: str
    sha256: str


class FittedEncoder(EncoderSpec):
    """An encoder that a job made: the id of its model, and the files, by name, that it is loaded from."""

    model: str
    files: dict[str, StoredFile]


DEFAULT_ENCODERS: dict[Modality, str] = {
    Modality.TEXT: "all-minilm-l6-v2",
    Modality.IMAGE: "mobilenet_v2",
    Modality.AUDIO: "mfcc-stats",
}


class Catalog(Mapping[str, EncoderSpec]):
    """The encoders by id, in the order they were given; a later one of the same id replaces the earlier."""

    def __init__(self, specs: Iterable[EncoderSpec]):
        self._specs = {spec.id: spec for spec in specs}

    def __getitem__(self, id: str) -> EncoderSpec:
        return self._specs[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def resolve(self, modality: Modality, id: str | None = None) -> EncoderSpec:
        """The encoder `id` (or the modality's default).

        Raises InvalidRequestError (`unknown_encoder`) if there is none of that id for that modality.
        """
        spec = self._specs.get(id or DEFAULT_ENCODERS[modality])
        if spec is None or spec.modality is not modality:
            known = ", ".join(s.id for s in self._specs.values() if s.modality is modality)
            raise InvalidRequestError(
                f"There is no {modality} encoder {id!r}; the {modality} encoders are: {known}.",
                code="unknown_encoder",
                param=f"encoders.{modality}",
            )
        return spec


def text_tower(catalog: Catalog, specs: Mapping[Modality, EncoderSpec], wanted: str | None) -> EncoderSpec:
    """The text encoder whose vectors lie in the space of these encoders' vectors: all are towers of one dual encoder.

    `wanted` is its id; without it, the first of the catalogue that is. Raises InvalidRequestError
    (`unsuitable_encoder`, `unknown_encoder`).
    """
    if not specs:
        message = "Nothing is encoded: choose the tower of a dual encoder, such as clip-vit-base-patch32-image."
        raise InvalidRequestError(message, code="unsuitable_encoder", param="encoders")
    for modality, spec in specs.items():
        if not _is_tower(spec):
            message = f"{spec.id} is no tower of a dual encoder, which class templates need; choose one, or null."
            raise InvalidRequestError(message, code="unsuitable_encoder", param=f"encoders.{modality}")
    found = (
        [spec for spec in catalog.values() if spec.modality is Modality.TEXT and _is_tower(spec)]
        if wanted is None
        else [catalog.resolve(Modality.TEXT, wanted)]
    )
    for tower in found:
        if _is_tower(tower) and all(spec.source == tower.source for spec in specs.values()):
            return tower
    named = ", ".join(spec.id for spec in specs.values())
    message = f"The catalogue has no text encoder of the same model as {named}; add one, or name it in text_encoder."
    if wanted is not None:
        message = f"{wanted} is not the text tower of the model of {named}."
    raise InvalidRequestError(message, code="unsuitable_encoder", param="text_encoder")


def _is_tower(spec: EncoderSpec) -> bool:
    return spec.loader == "transformers" and spec.options.get("pooling") == "clip"


def load_catalog(path: str | Path | None = None) -> Catalog:
    """The built-in encoders and those of the JSON file at `path` (a list of EncoderSpec objects).

    Raises InvalidRequestError (`invalid_catalog`) naming the file and the entry that is wrong.
    """
    built_in = _read(Path(__file__).with_name("catalog.json"))
    return Catalog(built_in if path is None else [*built_in, *_read(Path(path))])


def _read(path: Path) -> list[EncoderSpec]:
    try:
        return TypeAdapter(list[EncoderSpec]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"The encoders file {path} cannot be used: {error}"
        raise InvalidRequestError(message, code="invalid_catalog") from error
