"""Hugging Face text encoders: BERT and its kin, sentence embedders, the text towers of dual encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.catalog import EncoderSpec
from shared.errors import ItemError, JobError
from shared.ml.device import Precision, choose_device, choose_dtype
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import digest_of, fingerprint_of
from shared.ml.encoders.pretrained import (
    invalid,
    load_model,
    load_tokenizer,
    model_files,
    model_folder,
    save_model,
)

#: int32 [tokens]
TokenIds = NDArray[np.int32]

#: What a dual encoder has besides its text tower.
_OTHER_TOWERS = ("vision_", "visual_", "audio_")

#: Text is tokenised up to this many characters for each token the model takes, and further only if those were too few.
_CHARACTERS_PER_TOKEN = 32


class TextOptions(BaseModel):
    """The catalogue options of a text encoder.

    `pooling` makes one vector of the tokens': `cls`, the first (Devlin et al. 2019); `mean`, their mean (Reimers and
    Gurevych 2019); `pooler`, the model's own head; `clip`, the projection into the space shared with images or audio
    (Radford et al. 2021). `normalize` scales it to length 1. `prefix` is put before every text. `max_length` is in
    tokens, special ones included; longer text is cut. A model that takes fewer has its own limit. `matryoshka`: it was
    trained so that the beginning of a vector is a vector, too (Kusupati et al. 2022), and may be asked for fewer
    dimensions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pooling: Literal["cls", "mean", "pooler", "clip"] = "mean"
    normalize: bool = False
    prefix: str = ""
    max_length: int = Field(default=512, ge=3)
    matryoshka: bool = False


class TransformersTextEncoder:
    """Text to one vector through a transformer (see TextOptions)."""

    def __init__(
        self, spec: EncoderSpec, source: Path | None, device: str, precision: Precision, *, trainable: bool = False
    ):
        try:
            self._options = TextOptions.model_validate(spec.options)
        except ValidationError as error:
            raise invalid(spec, f"its options are wrong: {error}") from error
        folder = model_folder(spec, source)
        self._device = choose_device(device)
        dtype = choose_dtype(self._device, precision)
        self._folder = folder
        self.at_once = 1024
        self.module = self._load_model(spec, folder, dtype, trainable=trainable)
        tokenizer = load_tokenizer(spec, folder)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._max_length = min(self._options.max_length, tokenizer.model_max_length, _positions_of(self.module))
        # transformers' wrapper switches truncation and padding of the tokenizer inside it from call to call, which is
        # not safe between threads. Set once here and from then on only read, the inner one is.
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._max_length)
        self.spec = spec
        self.decode_options: dict[str, Any] = {}
        self.dimension = self._probe()
        preprocessing = self._options.model_dump() | {"max_length": self._max_length}
        self.fingerprint = fingerprint_of(digest_of(model_files(folder)), str(dtype), preprocessing)

    def preprocess(self, media: Media) -> TokenIds:
        """Text to token ids, int32 [tokens]. Raises ItemError (`empty_text`) if there is nothing to encode."""
        text = str(media)
        ids = self._tokenize(self._options.prefix + text) if text.strip() else None
        if ids is None:
            raise ItemError("The text is empty.", code="empty_text")
        return np.array(ids, np.int32)

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The layer from token ids to vectors."""
        tower = getattr(self.module, "text_model", self.module)
        layer: torch.nn.Module = tower.get_input_embeddings()
        return layer

    def with_room(self, ids: TokenIds, count: int) -> TokenIds:
        """The same text with `count` tokens after its first one, which stand for something else; cut if need be.

        Raises JobError (`context_too_long`) if nothing would be left of the text.
        """
        kept = self._max_length - count
        if kept < 3:
            message = f"{self.spec.id} reads {self._max_length} tokens; {count} are too many before a text."
            raise JobError(message, code="context_too_long")
        shortened = ids if len(ids) <= kept else np.concatenate([ids[: kept - 1], ids[-1:]])
        # Ids of the text itself: of none of them a model thinks that it ends a text or fills one up.
        return np.concatenate([shortened[:1], np.repeat(shortened[1:2], count), shortened[1:]]).astype(np.int32)

    def cost(self, prepared: TokenIds) -> int:
        """Tokens."""
        return len(prepared)

    def encode(self, batch: Sequence[TokenIds]) -> Vectors:
        """Token ids to float32 [len(batch), dimension]; padded on the right to the longest."""
        with torch.inference_mode():
            array: Vectors = self.vectors(batch).cpu().numpy()
        return array

    def vectors(self, batch: Sequence[TokenIds]) -> torch.Tensor:
        """See TrainableEncoder."""
        lengths = np.array([len(ids) for ids in batch])
        longest = int(lengths.max())
        padded = np.full((len(batch), longest), self._pad_id, np.int64)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        # Without padding no mask is given: attention is faster so.
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]) if lengths.min() < longest else None
        return self._forward(torch.from_numpy(padded).to(self._device), None if mask is None else mask.to(self._device))

    def save(self, folder: Path) -> None:
        """See TrainableEncoder."""
        save_model(self.module, self._folder, folder)

    def _load_model(self, spec: EncoderSpec, folder: Path, dtype: torch.dtype, *, trainable: bool) -> Any:
        unused = {"pooler": (), "clip": _OTHER_TOWERS}.get(self._options.pooling, ("pooler.",))
        model = load_model(spec, folder, self._device, dtype, unused=unused, trainable=trainable)
        if self._options.pooling == "clip":
            if not hasattr(model, "get_text_features"):
                raise invalid(spec, f"{type(model).__name__} is no dual encoder, and pooling is clip")
            for name in [name for name, _ in model.named_children() if name.startswith(_OTHER_TOWERS)]:
                delattr(model, name)
        return model

    def _tokenize(self, text: str) -> list[int] | None:
        """Token ids, or None if all of them are special."""
        head = text[: _CHARACTERS_PER_TOKEN * self._max_length]
        encoding = self._tokenizer.encode(head)
        # Where at least a window of tokens follows the first, the cut cannot have changed the first.
        if len(head) < len(text) and len(encoding.overflowing) < 2:
            encoding = self._tokenizer.encode(text)
        return None if all(encoding.special_tokens_mask) else encoding.ids

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": None if mask is None else mask.long()}
        if self._options.pooling == "clip":
            vectors: torch.Tensor = self.module.get_text_features(**inputs).pooler_output
        else:
            vectors = self._pool(self.module(**inputs), mask)
        vectors = vectors.float()
        if self._options.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors

    def _pool(self, output: Any, mask: torch.Tensor | None) -> torch.Tensor:
        if self._options.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output
            return pooled
        tokens: torch.Tensor = output.last_hidden_state
        if self._options.pooling == "cls":
            return tokens[:, 0]
        if mask is None:
            return tokens.float().mean(1)
        weights = mask.unsqueeze(2).float()
        return (tokens.float() * weights).sum(1) / weights.sum(1)

    def _probe(self) -> int:
        """The dimension of the vectors, from one text as long as the model takes: what cannot run fails here."""
        ids = np.full(self._max_length, self._pad_id, np.int32)
        try:
            return int(self.encode([ids]).shape[1])
        except (IndexError, RuntimeError, AttributeError, TypeError) as error:
            raise invalid(self.spec, f"the model cannot encode {self._max_length} tokens: {error}") from error


def _positions_of(model: Any) -> int:
    """How many tokens the model has positions for."""
    config = getattr(model.config, "text_config", model.config)
    positions = int(getattr(config, "max_position_embeddings", None) or 512)
    # RoBERTa and its kin number positions from the padding id on.
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return positions if padding is None else positions - padding - 1
