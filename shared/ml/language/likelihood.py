"""How likely given answers are: for choosing among labels without generating."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import JobError
from shared.ml.encoders.batching import plan_batches
from shared.ml.language.conversations import Encoded
from shared.ml.language.generate import Prompted, following
from shared.ml.language.loading import LanguageModel
from shared.ml.language.tuned import TunedLanguageModel

#: Tokens read at once, and how many of them have logits (of a large vocabulary, a megabyte each).
_MOST_TOKENS, _MOST_SAID = 8192, 512


def answer_log_likelihoods(
    model: TunedLanguageModel | LanguageModel,
    prompts: Sequence[Prompted],
    answers: Sequence[str],
    *,
    check: Callable[[], None] = lambda: None,
    max_length: int | None = None,
) -> NDArray[np.float64]:
    """log p(answer | prompt), float64 [prompts, answers]: the sum over the answer's tokens, its end not included.

    The prompt is read once for all answers. `check` is called before each batch and may raise to stop. Prompts longer
    than what the model can read, or than `max_length`, lose the start of their question. Raises JobError
    (`empty_answer`, `conversation_impossible`, `answer_too_long`).
    """
    tuned = TunedLanguageModel.plain(model) if isinstance(model, LanguageModel) else model
    words = [tuned.base.tokenizer.words(answer) for answer in answers]
    if not all(words):
        raise JobError("An answer without words has no likelihood.", code="empty_answer")
    longest = max(map(len, words), default=0)
    room = tuned.context_length - longest
    encoded = [tuned.encode(p.conversation, p.media, max_length=min(room, max_length or room)) for p in prompts]
    found = np.zeros((len(prompts), len(answers)))
    costs = [len(e) + len(words) * longest for e in encoded]
    with tuned.active(), torch.inference_mode():
        tuned.train(mode=False)
        most = tuned.rows_together(max(costs, default=0), max(_MOST_SAID // max(len(words) * longest, 1), 1))
        for rows in plan_batches(costs, max_cost=_MOST_TOKENS, max_items=most) if words else []:
            check()
            found[rows] = _of_batch(tuned, [prompts[r] for r in rows], [encoded[r] for r in rows], words)
    return found


def _of_batch(
    tuned: TunedLanguageModel, prompts: Sequence[Prompted], encoded: Sequence[Encoded], words: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    batch = tuned.batch(encoded, [p.media for p in prompts])
    output = tuned.logits(batch, keep=1, use_cache=True)
    first = _log_softmax(output.logits[:, -1])
    total = first[:, [tokens[0] for tokens in words]]  # [b, a]
    longest = max(map(len, words))
    if longest > 1:
        # Each prompt's row once for each answer, which is padded on the right: what comes after it sees nothing of it.
        padded = [[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens in words]
        count, rows = len(encoded), [row for row in range(len(encoded)) for _ in words]
        after = following(tuned, batch, output.past_key_values, [t[:-1] for t in padded] * count, rows)
        said = _log_softmax(tuned.logits(after, use_cache=True).logits)
        targets = torch.tensor([tokens[1:] for tokens in padded] * count, device=said.device)
        each = said.gather(2, targets[:, :, None])[:, :, 0].view(count, len(words), longest - 1)
        there = torch.tensor([[i < len(tokens) - 1 for i in range(longest - 1)] for tokens in words])
        total = total + (each * there.to(each.device)).sum(2)
    return np.asarray(total.cpu(), np.float64)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)
