"""Answers of a language model: many conversations at once, with the cache of what was read, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from shared.conversations import Message
from shared.errors import JobError
from shared.ml.encoders.batching import is_out_of_memory, plan_batches
from shared.ml.language.answers import Answer
from shared.ml.language.conversations import Encoded
from shared.ml.language.loading import LanguageModel
from shared.ml.language.sampling import Sampler
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import Batch, TunedLanguageModel
from shared.schemas import Strict

#: Conversations answered at once, and their tokens together, answers included.
_MOST_ROWS, _MOST_TOKENS = 32, 16_384


class Generation(Strict):
    """How an answer is drawn. Temperature 0 always takes the likeliest token."""

    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1, description="only the likeliest tokens that are together as likely as this")
    stop: list[str] = Field(default_factory=list, max_length=16, description="the answer ends before any of these")
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Prompted:
    """A conversation to be answered, and what stands for its markers, in order (see shared.conversations.markers).

    A medium whose vector is None is passed over, as in training.
    """

    conversation: Sequence[Message]
    media: Sequence[Media] = ()
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True)
class Generated:
    """An answer. `stop`: the model, or one of the stop words, ended it; `length`: the limit did."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


#: Told of the place of a prompt and the next piece of its answer.
Emit = Callable[[int, str], None]


def generate(
    model: TunedLanguageModel | LanguageModel,
    prompts: Sequence[Prompted],
    *,
    emit: Emit | None = None,
    check: Callable[[], None] = lambda: None,
    max_length: int | None = None,
) -> list[Generated]:
    """Answers, in the order of the prompts. Each answer depends on its own prompt and seed alone.

    `emit(place, text)` is told of each piece of the answer to prompt number `place` as soon as it is certain; the
    pieces make up the whole text. `check` is called before each token and may raise to stop. Conversations longer than
    what the model can read, or than `max_length`, lose the start of their question. Raises JobError
    (`conversation_impossible`, `answer_too_long`, `out_of_memory`).
    """
    tuned = TunedLanguageModel.plain(model) if isinstance(model, LanguageModel) else model
    encoded = [tuned.encode(p.conversation, p.media, max_length=_room(tuned, p, max_length)) for p in prompts]
    costs = [len(e) + p.generation.max_tokens for e, p in zip(encoded, prompts, strict=True)]
    most = tuned.rows_together(max(costs, default=0), _MOST_ROWS)
    waiting = plan_batches(costs, max_cost=_MOST_TOKENS, max_items=most)
    answered: dict[int, Generated] = {}
    with tuned.active(), torch.inference_mode():
        tuned.train(mode=False)
        while waiting:
            rows = waiting.pop(0)
            batch = _Answering(tuned, {row: (prompts[row], encoded[row]) for row in rows}, emit, check)
            try:
                answered |= batch.run()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1 or batch.told:
                    message = "The conversation does not fit into the worker's memory; shorten it, or ask for less."
                    raise JobError(message, code="out_of_memory") from error
                waiting[:0] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return [answered[row] for row in range(len(prompts))]


def _room(tuned: TunedLanguageModel, prompted: Prompted, max_length: int | None) -> int:
    """Tokens of the prompt, so that the answer has its place; half of what there is, if it wants it all."""
    room = tuned.context_length
    left = max(room - prompted.generation.max_tokens, room // 2)
    return min(left, max_length or left)


class _Answering:
    """One batch, from its prompts to the end of the last answer. Who has answered leaves the batch."""

    def __init__(
        self,
        tuned: TunedLanguageModel,
        asked: dict[int, tuple[Prompted, Encoded]],
        emit: Emit | None,
        check: Callable[[], None],
    ):
        self._tuned, self._asked, self._emit, self._check = tuned, asked, emit, check
        tokenizer = tuned.base.tokenizer
        limits = {row: min(p.generation.max_tokens, tuned.context_length - len(e)) for row, (p, e) in asked.items()}
        self._answers = {
            row: Answer(tokenizer.tokenizer, p.generation.stop, limits[row], tokenizer.end_ids)
            for row, (p, _) in asked.items()
        }
        self._samplers = {
            row: Sampler(p.generation.temperature, p.generation.top_p, p.generation.seed)
            for row, (p, _) in asked.items()
        }
        self.told = False

    def run(self) -> dict[int, Generated]:
        """The answers by row."""
        rows = list(self._asked)
        self._check()
        batch = self._tuned.batch([self._asked[r][1] for r in rows], [self._asked[r][0].media for r in rows])
        output = self._tuned.logits(batch, keep=1, use_cache=True)
        while True:
            tokens = [self._next(row, logits) for row, logits in zip(rows, output.logits[:, -1].float(), strict=True)]
            kept = [i for i, row in enumerate(rows) if self._answers[row].finish_reason is None]
            if not kept:
                return {row: self._generated(row) for row in self._asked}
            self._check()
            batch = following(self._tuned, batch, output.past_key_values, [[tokens[i]] for i in kept], kept)
            rows = [rows[i] for i in kept]
            output = self._tuned.logits(batch, keep=1, use_cache=True)

    def _next(self, row: int, logits: Tensor) -> int:
        token = self._samplers[row].draw(logits)
        piece = self._answers[row].add(token)
        if piece and self._emit is not None:
            self.told = True
            self._emit(row, piece)
        return token

    def _generated(self, row: int) -> Generated:
        answer = self._answers[row]
        assert answer.finish_reason is not None
        return Generated(answer.text, answer.finish_reason, len(self._asked[row][1]), answer.tokens)


def following(
    tuned: TunedLanguageModel, batch: Batch, cache: Any, tokens: Sequence[Sequence[int]], kept: Sequence[int]
) -> Batch:
    """What comes after a batch that was read into `cache`: the same number of tokens for each of the rows `kept`."""
    device = tuned.base.device
    mask, positions = batch.mask, batch.positions
    assert mask is not None
    if list(kept) != list(range(len(mask))):
        index = torch.tensor(kept, device=device)
        cache.batch_select_indices(index)
        mask, positions = mask[index], positions[index]
    ids = torch.tensor(tokens, device=device)
    steps = torch.arange(1, ids.shape[1] + 1, device=device)
    embeddings = tuned.base.model.get_input_embeddings()(ids)
    mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return replace(
        batch, embeddings=embeddings, mask=mask, positions=positions[:, -1:] + steps, labels=ids, cache=cache
    )  # fmt: skip
