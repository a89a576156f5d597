"""k-fold cross-validation: every item is tested once, by a model that did not see it."""

from typing import Any

import numpy as np

from services.finetune.candidates import Candidate
from services.finetune.modelling import Run, train_model
from services.finetune.scores import MAIN_SCORE, main_score
from shared.ml.repeatable import generator
from shared.ml.splits import Parts, stratify


def cross_validate(run: Run, candidate: Candidate, count: int) -> dict[str, Any]:
    """The main score of the candidate on each of `count` stratified folds, trained on the others.

    All items take part, whatever their split: this says how a model of these settings does on such data, not how the
    one model does that is kept.
    """
    rng = generator(run.request.training.seed, "folds")
    fold = stratify(run.problem.strata, [1 / count] * count, rng)
    scores = []
    for place in range(count):
        test = np.flatnonzero(fold == place)
        if not len(test):
            continue
        rest = np.flatnonzero(fold != place)
        share = run.request.splitting.validation
        judges = stratify(run.problem.strata[rest], [1 - share, share], rng) == 1
        parts = Parts(rest[~judges], rest[judges], test)
        part = Run.of(run.data, run.problem, parts, run.request, run.outside)
        trained = train_model(f"fold-{place + 1}", part, [candidate])
        items = run.data.take(test)
        outputs = trained.model.outputs(items.vectors, items.present)
        scores.append(main_score(part.problem.task, part.problem.answers[test], outputs))
        run.outside.progress.report("fold", fold=place + 1, score=scores[-1])
    return {
        "score": MAIN_SCORE[run.problem.task],
        "folds": scores,
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)),
    }
