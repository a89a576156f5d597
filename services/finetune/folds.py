"""k-fold cross-validation: every item is tested once, by a model that did not see it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from services.finetune.candidates import Candidate
from services.finetune.modelling import Run, train_model
from services.finetune.scores import MAIN_SCORE, main_score
from shared.ml.repeatable import generator
from shared.ml.splits import Mask, Parts, stratify


def cross_validate(run: Run, candidate: Candidate, count: int) -> dict[str, Any]:
    """The main score of the candidate on each of `count` stratified folds, trained on the others.

    All items take part, whatever their split: this says how a model of these settings does on such data, not how the
    one model does that is kept.
    """
    rng = generator(run.request.training.seed, "folds")
    scores = []
    for place, parts in enumerate(stratified_folds(run.problem.strata, count, run.request.splitting.validation, rng)):
        part = Run.of(run.data, run.problem, parts, run.request, run.outside)
        trained = train_model(f"fold-{place + 1}", part, [candidate])
        items = run.data.take(parts.test)
        outputs = trained.model.outputs(items.vectors, items.present)
        scores.append(main_score(part.problem.task, part.problem.answers[parts.test], outputs))
        run.outside.progress.report("fold", fold=place + 1, score=scores[-1])
    return {
        "score": MAIN_SCORE[run.problem.task],
        "folds": scores,
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)),
    }


def stratified_folds(strata: Mask, count: int, validation: float, rng: np.random.Generator) -> Iterator[Parts]:
    """The parts of each of `count` rounds: every item is tested in one of them; of the others, `validation` judge.

    All have each stratum, a column of bool [n, s], in the same proportions. With fewer items than folds there are fewer
    rounds.
    """
    fold = stratify(strata, [1 / count] * count, rng)
    for place in np.unique(fold):
        rest = np.flatnonzero(fold != place)
        judges = stratify(strata[rest], [1 - validation, validation], rng) == 1
        yield Parts(rest[~judges], rest[judges], np.flatnonzero(fold == place))
