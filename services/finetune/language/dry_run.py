"""What training is going to read, before it begins: token counts, what is cut or left out, and examples as they are
put to the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.finetune.language.data import Example
from shared.conversations import MediaPart
from shared.errors import JobError
from shared.ml.language.conversations import IGNORED, Encoded
from shared.ml.language.tuned import TunedLanguageModel
from shared.queues import Modality

_SHOWN, _CHARACTERS = 3, 2000


@dataclass(frozen=True)
class Prepared:
    """Examples and their tokens, answers included; those whose answer does not fit are not among them.

    `projected`: what enters through a projector.
    """

    examples: list[Example]
    encoded: list[Encoded]
    projected: frozenset[Modality] = frozenset()

    def __len__(self) -> int:
        return len(self.examples)

    def with_media(self) -> "Prepared":
        """Those that have a picture or a sound from which a projector learns."""
        rows = [
            i
            for i, e in enumerate(self.examples)
            if any(one.vector is not None and one.modality in self.projected for one in e.media)
        ]
        return Prepared([self.examples[i] for i in rows], [self.encoded[i] for i in rows], self.projected)

    @property
    def tokens(self) -> list[int]:
        """Of each."""
        return [len(one) for one in self.encoded]


def prepare(model: TunedLanguageModel, examples: Sequence[Example], max_length: int) -> Prepared:
    """Raises JobError (`conversation_impossible`) naming the item."""
    kept, encoded = [], []
    for example in examples:
        try:
            one = model.encode(example.question, example.media, answer=example.answer, max_length=max_length)
        except JobError as error:
            if error.error_code == "answer_too_long":
                continue
            raise JobError(f"Item {example.id!r}: {error.message}", code=error.error_code, param="items") from error
        kept.append(example)
        encoded.append(one)
    return Prepared(kept, encoded, frozenset(model.config.projectors))


def dry_run(model: TunedLanguageModel, examples: Sequence[Example], prepared: Prepared) -> dict[str, Any]:
    """As JSON: what is shown before training starts."""
    tokens = np.array(prepared.tokens or [0])
    learned = sum(label != IGNORED for one in prepared.encoded for label in one.labels)
    cut = [one.cut for one in prepared.encoded if one.cut]
    fitting = {example.id for example in prepared.examples}
    left_out = [example.id for example in examples if example.id not in fitting]
    tokenizer = model.base.tokenizer
    return {
        "examples": len(prepared),
        "tokens": int(tokens.sum()),
        "answer_tokens": learned,
        "tokens_of_one": {"median": float(np.median(tokens)), "longest": int(tokens.max())},
        "cut": {"examples": len(cut), "tokens": sum(cut)},
        "left_out": {"examples": len(left_out), "first": left_out[:_SHOWN]},
        "missing_media": sum(one.vector is None for example in prepared.examples for one in example.media),
        "shown": [
            {"id": example.id, "rendered": tokenizer.show(one)[:_CHARACTERS], "tokens": len(one), "cut": one.cut}
            for example, one in zip(prepared.examples[:_SHOWN], prepared.encoded, strict=False)
        ],
    }


def question_text(example: Example) -> str:
    """The question for people: the last turn, with `[image]` and `[audio]` where media come in."""
    parts = example.question[-1].parts
    return "".join(f"[{part.type}]" if isinstance(part, MediaPart) else part.text for part in parts)
