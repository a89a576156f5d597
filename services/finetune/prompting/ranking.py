"""Prompt search: several prompts, each tried on validation items; the best is kept, all are told of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.finetune.problem import Problem
from services.finetune.scores import main_score
from shared.ml.splits import Rows
from shared.prompts import PromptTemplate
from shared.worker.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Tried(Generic[T]):
    """A prompt, what was made of it, and how good that is on validation items: its score, then its loss."""

    prompt: PromptTemplate
    made: T
    score: float
    loss: float


def try_all(
    prompts: Sequence[PromptTemplate],
    make: Callable[[PromptTemplate], tuple[T, Any]],
    problem: Problem,
    judges: Rows,
    progress: Progress,
) -> list[Tried[T]]:
    """`make` gives what a prompt makes, and its outputs [judges, classes]. Best first; of equal ones the earlier."""
    found = []
    for place, prompt in enumerate(prompts):
        progress.check()
        made, outputs = make(prompt)
        score = main_score(problem.task, problem.answers[judges], outputs)
        found.append(Tried(prompt, made, score, problem.loss(outputs, judges)))
        if len(prompts) > 1:
            progress.report("trial", trial=place, score=score, validation_loss=found[-1].loss, of="prompt")
    return sorted(found, key=lambda tried: (-tried.score, tried.loss))


def as_metrics(found: Sequence[Tried[T]]) -> list[dict[str, Any]]:
    """All prompts that were tried, best first, as JSON."""
    return [
        {
            "prompt": tried.prompt.model_dump(mode="json", exclude_defaults=True),
            "validation_score": tried.score,
            "validation_loss": tried.loss,
            "chosen": place == 0,
        }
        for place, tried in enumerate(found)
    ]
