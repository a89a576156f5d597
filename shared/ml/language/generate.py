"""Answers of a language model: many conversations at once, with the cache of what was read, token by token."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from shared.conversations import Message
from shared.errors import JobError
from shared.generation import Generation
from shared.ml.encoders.batching import is_out_of_memory, plan_batches
from shared.ml.language.answers import Answer
from shared.ml.language.conversations import Encoded
from shared.ml.language.loading import LanguageModel
from shared.ml.language.sampling import Sampler
from shared.ml.language.soft_tokens import Media
from shared.ml.language.tuned import Batch, TunedLanguageModel

#: Conversations answered at once, and their tokens together, answers included.
_MOST_ROWS, MOST_TOKENS = 32, 16_384


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


@dataclass(frozen=True)
class Piece:
    """What a step adds to the answer to prompt number `place`: text that is certain, and at its end the whole."""

    place: int
    text: str
    end: Generated | None


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
    answered: dict[int, Generated] = {}
    check()
    for pieces in decode(model, prompts, streams=emit is not None, max_length=max_length):
        for piece in pieces:
            if piece.text and emit is not None:
                emit(piece.place, piece.text)
            if piece.end is not None:
                answered[piece.place] = piece.end
        check()
    return [answered[row] for row in range(len(prompts))]


def decode(
    model: TunedLanguageModel | LanguageModel,
    prompts: Sequence[Prompted],
    *,
    streams: bool = True,
    gone: Callable[[int], bool] = lambda place: False,  # noqa: ARG005
    max_length: int | None = None,
) -> Generator[list[Piece], None, None]:
    """The same by steps of one token for each answer in a batch; between two of them others may use the base model.

    `streams` tells of text as soon as it is certain, without it of whole answers only, and a batch that does not fit
    into memory is begun again as two. A prompt that is `gone` is left without an end. Raises what `generate` does.
    """
    tuned = TunedLanguageModel.plain(model) if isinstance(model, LanguageModel) else model
    encoded = [tuned.encode(p.conversation, p.media, max_length=_room(tuned, p, max_length)) for p in prompts]
    costs = [len(e) + p.generation.max_tokens for e, p in zip(encoded, prompts, strict=True)]
    most = tuned.rows_together(max(costs, default=0), _MOST_ROWS)
    waiting = plan_batches(costs, max_cost=MOST_TOKENS, max_items=most)
    while waiting:
        rows = waiting.pop(0)
        batch = _Answering(tuned, {row: (prompts[row], encoded[row]) for row in rows}, gone)
        told = False
        try:
            while (pieces := batch.step()) is not None:
                yield pieces if streams else [piece for piece in pieces if piece.end is not None]
                told = streams
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1 or told:
                message = "The conversation does not fit into the worker's memory; shorten it, or ask for less."
                raise JobError(message, code="out_of_memory") from error
            waiting[:0] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def _room(tuned: TunedLanguageModel, prompted: Prompted, max_length: int | None) -> int:
    """Tokens of the prompt, so that the answer has its place; half of what there is, if it wants it all."""
    room = tuned.context_length
    left = max(room - prompted.generation.max_tokens, room // 2)
    return min(left, max_length or left)


class _Answering:
    """One batch, from its prompts to the end of the last answer. Who has answered, or is gone, leaves the batch."""

    def __init__(
        self, tuned: TunedLanguageModel, asked: dict[int, tuple[Prompted, Encoded]], gone: Callable[[int], bool]
    ):
        self._tuned, self._asked, self._gone = tuned, asked, gone
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
        self._rows, self._tokens = list(asked), list[int]()  # those who are left, and what each of them said last
        self._batch: Batch | None = None
        self._cache: Any = None

    def step(self) -> list[Piece] | None:
        """The next token of each answer; None if all have ended."""
        kept = [i for i, row in enumerate(self._rows) if not self._answers[row].finish_reason and not self._gone(row)]
        if not kept:
            return None
        with self._tuned.active(), torch.inference_mode():
            self._tuned.train(mode=False)
            batch = self._next(kept)
            output = self._tuned.logits(batch, keep=1, use_cache=True)
            logits = output.logits[:, -1].float()
        self._batch, self._cache, self._rows = batch, output.past_key_values, [self._rows[i] for i in kept]
        self._tokens = [self._samplers[row].draw(one) for row, one in zip(self._rows, logits, strict=True)]
        return [self._piece(row, token) for row, token in zip(self._rows, self._tokens, strict=True)]

    def _next(self, kept: Sequence[int]) -> Batch:
        """What those are to read who are `kept`: their prompts, then always their last token."""
        if self._batch is None:
            asked = [self._asked[self._rows[i]] for i in kept]
            return self._tuned.batch([e for _, e in asked], [p.media for p, _ in asked])
        return following(self._tuned, self._batch, self._cache, [[self._tokens[i]] for i in kept], kept)

    def _piece(self, row: int, token: int) -> Piece:
        answer = self._answers[row]
        text = answer.add(token)
        if answer.finish_reason is None:
            return Piece(row, text, None)
        return Piece(row, text, Generated(answer.text, answer.finish_reason, len(self._asked[row][1]), answer.tokens))


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
        batch, embeddings=embeddings, mask=mask, positions=positions[:, -1:] + steps, labels=ids, cache=cache,
        types=None,
    )  # fmt: skip
