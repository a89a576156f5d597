"""What a language model is worth: its answers to held-out items, beside those of the model that it was made from."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from services.finetune.language.data import Example, without_media
from services.finetune.language.labels import label_of, normalised
from services.finetune.scores import Interval
from shared.generation import Generation
from shared.language_tuning import LanguageTraining
from shared.ml.language.generate import Prompted, generate
from shared.ml.language.tuned import TunedLanguageModel
from shared.ml.repeatable import generator
from shared.prompts import PromptTemplate, labels_of_words
from shared.worker.progress import Progress

_DRAWS, _LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Judge:
    """The held-out items, and how answers to them are drawn and judged."""

    examples: list[Example]
    classes: list[str]
    prompt: PromptTemplate
    training: LanguageTraining
    longest_answer: int
    one_line: bool

    @property
    def main_score(self) -> str:
        """By which models are compared."""
        return "accuracy" if self.classes else "exact_match"

    def answers(self, model: TunedLanguageModel, progress: Progress, *, blind: bool = False) -> list[str]:
        """The model's answers, always its likeliest words. `blind`: without pictures and sounds."""
        drawn = Generation(
            max_tokens=min(self.training.max_new_tokens, 2 * self.longest_answer + 8),
            temperature=0.0,
            # A base model does not know that answers are short: what comes after the first line is no answer.
            stop=["\n"] if self.one_line else [],
        )
        asked = [without_media(e) if blind else e for e in self.examples]
        prompted = [Prompted(e.question, e.media, drawn) for e in asked]
        found = generate(model, prompted, check=progress.check, max_length=self.training.max_length)
        return [answer.text.strip() for answer in found]

    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """All scores of such answers, as JSON."""
        wanted = [example.answer for example in self.examples]
        scores: dict[str, Any] = {
            "exact_match": float(np.mean([normalised(a) == normalised(b) for a, b in zip(wanted, said, strict=True)])),
            "token_f1": float(np.mean([token_f1(a, b) for a, b in zip(wanted, said, strict=True)])),
        }
        if self.classes:
            scores |= self._of_labels(said)
        return scores

    def right(self, said: Sequence[str]) -> NDArray[np.float64]:
        """What each item brings to the main score."""
        if self.classes:
            return np.array([self.label(a) == e.labels[0] for e, a in zip(self.examples, said, strict=True)], float)
        return np.array(
            [normalised(e.answer) == normalised(a) for e, a in zip(self.examples, said, strict=True)], float
        )  # fmt: skip

    def label(self, said: str) -> str | None:
        """The label that an answer names, alone or at its start; None if it names none."""
        words = labels_of_words({label: self.prompt.words_for(label) for label in self.classes})
        return label_of(said, words)

    def _of_labels(self, said: Sequence[str]) -> dict[str, Any]:
        """Macro averages are over the classes; an answer that names none is a mistake."""
        wanted = [example.labels[0] for example in self.examples]
        found = [self.label(answer) or "" for answer in said]
        options: dict[str, Any] = {"labels": self.classes, "zero_division": 0}
        per_class = metrics.precision_recall_fscore_support(wanted, found, **options)
        return {
            "accuracy": float(np.mean([a == b for a, b in zip(wanted, found, strict=True)])),
            **{f"{n}_macro": float(per_class[i].mean()) for i, n in enumerate(("precision", "recall", "f1"))},
            "no_label": float(np.mean([not label for label in found])),
            "classes": {
                name: {"items": int(per_class[3][i]), "precision": float(per_class[0][i]),
                       "recall": float(per_class[1][i]), "f1": float(per_class[2][i])}
                for i, name in enumerate(self.classes)
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """The answers of the base model and of the tuned one to the same items, and their scores as JSON."""

    base: list[str]
    tuned: list[str]
    scores: dict[str, Any]


def compare(judge: Judge, base: TunedLanguageModel, tuned: TunedLanguageModel, progress: Progress) -> Compared:
    """Base beside tuned; and where items have pictures or sounds, tuned without them."""
    progress.report("step", doing="answering test items with the base model")
    before = judge.answers(base, progress)
    progress.report("step", doing="answering test items with the tuned model")
    after = judge.answers(tuned, progress)
    right = {"base": judge.right(before), "tuned": judge.right(after)}
    scores: dict[str, Any] = {"test": judge.score(after), "base": judge.score(before)}
    if any(one.vector is not None and one.modality in tuned.dimensions for e in judge.examples for one in e.media):
        blind = judge.answers(tuned, progress, blind=True)
        scores["without_media"] = judge.score(blind)
        right["without_media"] = judge.right(blind)
    right["gain"] = right["tuned"] - right["base"]
    scores["intervals"] = {name: asdict(_interval(each, judge.training.seed)) for name, each in right.items()}
    return Compared(before, after, scores)


def token_f1(wanted: str, said: str) -> float:
    """F1 over words (Rajpurkar et al., "SQuAD", EMNLP 2016); over characters where a script has no spaces."""
    first, second = (Counter(_words(normalised(text))) for text in (wanted, said))
    common = sum((first & second).values())
    total = sum(first.values()) + sum(second.values())
    return 2 * common / total if total else 1.0


#: Words; of Chinese, Japanese and Thai each character.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _interval(each: NDArray[np.float64], seed: int) -> Interval:
    """Their mean with its percentile bootstrap interval; the same draws for all."""
    rng, count = generator(seed, "interval"), len(each)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS) @ each / count
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(each.mean()), float(low), float(high))
