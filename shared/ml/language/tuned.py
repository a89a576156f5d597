"""A language model with what was learned for it: an adapter in PEFT's layout, and projectors of pictures and sounds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import safetensors.torch
import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from shared.conversations import Message, markers
from shared.errors import JobError
from shared.language_tuning import Adapter
from shared.ml.language.adapters import ADAPTER, ADAPTER_CONFIG, PeftAdapter, switch_off
from shared.ml.language.conversations import IGNORED, Encoded
from shared.ml.language.loading import LanguageModel
from shared.ml.language.soft_tokens import Media, Projector, ProjectorConfig
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.strict import Strict

PROJECTOR, CONFIG = "projector.safetensors", "config.json"

#: All files of a tuned model; it may have no adapter, or no projector.
FILES = frozenset({ADAPTER, ADAPTER_CONFIG, PROJECTOR, CONFIG})


class TunedConfig(Strict):
    """`config.json`: with adapter, projectors and base model, the whole."""

    format: Literal[1] = 1
    language_model: str = Field(description="id of the base model in the catalogue")
    fingerprint: str = Field(description="of its weights")
    adapter: Adapter = Adapter.NONE
    projectors: dict[Modality, ProjectorConfig] = Field(default_factory=dict)
    image_encoder: str | None = Field(
        None, description="whose vectors of pictures are the base model's own image tokens and need no projector"
    )
    prompt: PromptTemplate | None = Field(None, description="how an item without messages is put to it")
    labels: list[str] = Field(default_factory=list, description="what it chooses among, if items have labels")
    by_likelihood: bool = Field(False, description="it chooses the label whose words are the likeliest answer")
    calibration: list[float] = Field(
        default_factory=list, description="how likely it says the labels are without an item (see choosing.py)"
    )
    max_length: int = Field(0, description="tokens of a conversation in training; 0: as many as it can read")

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Workers of before, beside which this one may run, refuse fields that they do not know.
        return {name: value for name, value in dump(self).items() if name != "image_encoder" or value}


@dataclass(frozen=True)
class Batch:
    """Conversations on the device, padded on the left: their ends are in the last column.

    `embeddings` [b, n, hidden], `mask` int64 [b, p + n], `labels` int64 [b, n] (IGNORED where nothing is learned).
    `cache`: p tokens that were read before (prefix tuning; else p is 0). `positions` int64 [b, n]. `types` int64
    [b, n]: 1 at the tokens of pictures, for models that ask.
    """

    embeddings: Tensor
    mask: Tensor | None
    positions: Tensor
    labels: Tensor
    cache: Any = None
    types: Tensor | None = None


class TunedLanguageModel:
    """Base model, adapter and projectors. Several can stand on one base model; `active` says which of them speaks."""

    def __init__(
        self, base: LanguageModel, config: TunedConfig, adapter: PeftAdapter | None, projectors: Mapping[str, Projector]
    ):
        self.base, self.config, self.adapter = base, config, adapter
        self.projectors = nn.ModuleDict(dict(projectors)).to(base.device)

    @classmethod
    def plain(cls, base: LanguageModel, *, sees: bool = True) -> Self:
        """The base model as it is. Unless it `sees`, pictures are passed over: their vectors are not its own."""
        own = base.spec.image_encoder if sees and base.eyes is not None else None
        return cls(
            base, TunedConfig(language_model=base.spec.id, fingerprint=base.fingerprint, image_encoder=own), None, {}
        )

    @classmethod
    def load(cls, files: Mapping[str, bytes], base: LanguageModel) -> Self:
        """The model in these files; others beside them are passed over.

        Raises JobError (`language_model_changed`) if it was trained on other weights than those of `base`, or `base`
        reads pictures no more.
        """
        config = TunedConfig.model_validate_json(files[CONFIG])
        if config.image_encoder is not None and base.eyes is None:
            message = f"This model reads pictures as {config.image_encoder} sees them: name it as the image_encoder of "
            message += f"{base.spec.id} in the worker's language models."
            raise JobError(message, code="language_model_changed")
        if config.fingerprint != base.fingerprint:
            message = (
                f"The weights of {base.spec.id} on this worker are not those that this model was tuned on; bring back "
                "that version, or tune the model again."
            )
            raise JobError(message, code="language_model_changed")
        projectors = {m.value: Projector(c) for m, c in config.projectors.items()}
        model = cls(base, config, PeftAdapter.load(files, base.model) if ADAPTER_CONFIG in files else None, projectors)
        if projectors:
            model.projectors.load_state_dict(safetensors.torch.load(files[PROJECTOR]))
        return model

    def files(self) -> dict[str, bytes]:
        """`adapter_model.safetensors` and `adapter_config.json` as PEFT reads them, unless there is no adapter;
        `projector.safetensors`, if there is a projector; `config.json`."""
        files = {} if self.adapter is None else self.adapter.files(self.base.spec.source)
        if self.projectors:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.projectors.state_dict().items()}
            files[PROJECTOR] = safetensors.torch.save(tensors)
        return {**files, CONFIG: self.config.model_dump_json(indent=1).encode()}

    @property
    def dimensions(self) -> dict[Modality, int]:
        """Numbers of the vectors that it takes of pictures and sounds."""
        found = {modality: config.dimension for modality, config in self.config.projectors.items()}
        if self.config.image_encoder is not None and self.base.eyes is not None:
            found[Modality.IMAGE] = self.base.eyes.count * self.base.hidden
        return found

    @property
    def context_length(self) -> int:
        """Tokens that it can read beside its soft prompt."""
        return self.base.context_length - (self.adapter.virtual_tokens if self.adapter else 0)

    def rows_together(self, width: int, wanted: int) -> int:
        """How many conversations, of up to `width` tokens, may be read at once if so many are `wanted`.

        Layers that look back only so far count padding, which would stand between a prefix and a shorter conversation.
        """
        window = getattr(self.base.model.config.get_text_config(), "sliding_window", None)
        is_far = window is not None and width + (self.adapter.virtual_tokens if self.adapter else 0) > window
        return 1 if is_far and self.adapter is not None and self.adapter.is_prefix else wanted

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the base model's layers compute with this one's adapter, and no other's."""
        switch_off(self.base.model)
        if self.adapter is not None:
            self.adapter.switch_on()
        try:
            yield
        finally:
            switch_off(self.base.model)

    def encode(
        self,
        conversation: Sequence[Message],
        media: Sequence[Media],
        *,
        answer: str | None = None,
        max_length: int | None = None,
    ) -> Encoded:
        """See ConversationTokenizer.encode; by default as long as the model can read, soft prompts included.

        A medium without a vector, or one that the model does not take, has no soft tokens. Raises JobError
        (`media_differ`, `unsuitable_features`).
        """
        wanted = markers(conversation)
        if [m.modality for m in media] != wanted:
            raise JobError(
                f"The conversation has markers for {wanted}, which the media do not fit.", code="media_differ"
            )
        soft = [self._tokens_of(one) for one in media]
        seen = {i for i, one in enumerate(media) if soft[i] and self._is_own(one.modality)}
        room = self.context_length
        return self.base.tokenizer.encode(
            conversation, soft, answer=answer, max_length=min(room, max_length or room), seen=seen
        )

    def batch(self, encoded: Sequence[Encoded], media: Sequence[Sequence[Media]]) -> Batch:
        """Conversations and the media of each, as the model takes them; with gradients if they are switched on."""
        rows = [self._embed(e, m) for e, m in zip(encoded, media, strict=True)]
        count, device = len(rows), self.base.device
        prompt, cache, before = None, None, 0
        if self.adapter is not None and self.adapter.is_prompt:
            prompt = self.adapter.prompt(count).to(rows[0].dtype)
            rows = [torch.cat([p, row]) for p, row in zip(prompt, rows, strict=True)]
        elif self.adapter is not None and self.adapter.is_prefix:
            cache, before = self.adapter.prefix(count), self.adapter.virtual_tokens
        width = max(len(row) for row in rows)
        embeddings = torch.stack([nn.functional.pad(row, (0, 0, width - len(row), 0)) for row in rows])
        labels = torch.full((count, width), IGNORED, device=device)
        mask = torch.zeros((count, before + width), dtype=torch.int64, device=device)
        mask[:, :before] = 1
        for place, (row, one) in enumerate(zip(rows, encoded, strict=True)):
            labels[place, width - len(one) :] = torch.tensor(one.labels, device=device)
            mask[place, before + width - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        return Batch(embeddings, mask, positions, labels, cache, self._types(encoded, media, width))

    def packed(self, encoded: Sequence[Encoded], media: Sequence[Sequence[Media]]) -> Batch:
        """Conversations one after the other in one row; positions start anew with each, by which transformers knows
        that they must not see each other. For soft prompts, and models that ask for token types, there is no such
        row."""
        assert self.adapter is None or not self.adapter.virtual_tokens
        assert self.base.eyes is None or not self.base.eyes.is_marked
        embeddings = torch.cat([self._embed(e, m) for e, m in zip(encoded, media, strict=True)])[None]
        positions = torch.cat([torch.arange(len(e), device=embeddings.device) for e in encoded])[None]
        labels = torch.tensor([label for e in encoded for label in e.labels], device=embeddings.device)[None]
        return Batch(embeddings, None, positions, labels)

    def logits(self, batch: Batch, keep: Tensor | int = 0, *, use_cache: bool = False) -> Any:
        """transformers' output for a batch; `logits` [b, kept, vocabulary] of the columns `keep` (the last so many)."""
        if isinstance(keep, int) and keep:
            # By index, and not by slice as transformers would: of a slice, which is not contiguous, torch multiplies a
            # copy of the output matrix for each row, gigabytes of it.
            width = batch.embeddings.shape[1]
            keep = torch.arange(width - keep, width, device=batch.embeddings.device)
        marked = {} if batch.types is None else {"token_type_ids": batch.types}
        return self.base.model(
            inputs_embeds=batch.embeddings, attention_mask=batch.mask, position_ids=batch.positions, **marked,
            past_key_values=batch.cache, logits_to_keep=keep, use_cache=use_cache or batch.cache is not None,
        )  # fmt: skip

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum of −log p over the tokens that are to be learned, and how many they are."""
        columns = (batch.labels != IGNORED).any(0).nonzero()[:, 0]
        # Vocabularies are large and answers short: logits are computed where something is to be said.
        logits = self.logits(batch, columns - 1).logits
        labels = batch.labels[:, columns]
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total, int((labels != IGNORED).sum())

    def train(self, *, mode: bool = True) -> None:
        """Dropout on or off."""
        self.base.model.train(mode)
        self.projectors.train(mode)

    def close(self) -> None:
        """Takes its adapter off the base model."""
        if self.adapter is not None:
            self.adapter.close()

    def _is_own(self, modality: Modality) -> bool:
        """Whether vectors of it are image tokens of the base model itself."""
        return modality is Modality.IMAGE and self.config.image_encoder is not None

    def _tokens_of(self, one: Media) -> int:
        """Soft tokens that stand for it."""
        dimension = self.dimensions.get(one.modality)
        if one.vector is None or dimension is None:
            return 0
        given = len(one.vector)
        if given != dimension:
            message = f"Of {one.modality} the model takes vectors of {dimension} numbers, and was given {given}."
            raise JobError(message, code="unsuitable_features")
        own = self._is_own(one.modality)
        return dimension // self.base.hidden if own else self.config.projectors[one.modality].tokens

    def _types(self, encoded: Sequence[Encoded], media: Sequence[Sequence[Media]], width: int) -> Tensor | None:
        """See Batch; rows end in the last of `width` columns."""
        if self.base.eyes is None or not self.base.eyes.is_marked:
            return None
        types = torch.zeros((len(encoded), width), dtype=torch.int64)
        for row, one, some in zip(types, encoded, media, strict=True):
            for column, place in enumerate(one.media, width - len(one)):
                row[column] = int(place >= 0 and self._is_own(some[place].modality))
        return types.to(self.base.device)

    def _embed(self, encoded: Encoded, media: Sequence[Media]) -> Tensor:
        """[n, hidden]"""
        device = self.base.device
        embedded: Tensor = self.base.model.get_input_embeddings()(torch.tensor(encoded.ids, device=device))
        where = torch.tensor(encoded.media, device=device)
        for place, one in enumerate(media):
            if one.vector is not None and one.modality in self.dimensions:
                vector = torch.from_numpy(one.vector).to(device)[None]
                own = self._is_own(one.modality)
                tokens = vector.view(-1, self.base.hidden) if own else self.projectors[one.modality](vector)[0]
                embedded = embedded.masked_scatter((where == place)[:, None], tokens.to(embedded.dtype))
        return embedded
