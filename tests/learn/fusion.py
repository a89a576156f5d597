"""Whether fusion beats every single modality: repeated stratified cross-validation, and what follows from it.

The best single modality and the best fusion are chosen anew in each round, by the log-loss on validation items that
were held back from its training items: test items have no part in any choice.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from services.finetune.data import Dataset
from services.finetune.folds import stratified_folds
from services.finetune.problem import Problem
from services.finetune.recipes.classifier import class_problem
from shared.fine_tuning import FineTuneRequest, Splitting
from shared.ml.repeatable import generator
from shared.ml.splits import Parts
from shared.schemas import Split
from tests.learn.contenders import BASELINES, ENSEMBLE, PRESET, SINGLE, Verdict, contend
from tests.learn.intervals import Interval, bootstrap, corrected_t, paired_bootstrap
from tests.learn.results import Result

Floats = NDArray[np.float64]

BEST_SINGLE, BEST_FUSION = "best-single", "best-fusion"
DIFFERENCE, CORRECTED = "accuracy difference", "accuracy difference, corrected t"


@dataclass(frozen=True)
class Round:
    """One training of every model, and what it came to."""

    repeat: int
    parts: Parts
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Scores:
    """Whether each model was right [repeats, n]: 1 or 0; the items that each round tested, by its repeat."""

    right: dict[str, Floats]
    tested: list[tuple[int, NDArray[np.intp]]]

    @classmethod
    def of(cls, rounds: Sequence[Round], count: int) -> "Scores":
        """Of all models of the rounds, and of the best by validation."""
        names = [*rounds[0].verdicts]
        fused = [name for name in names if name not in (*SINGLE, *BASELINES, PRESET, ENSEMBLE)]
        groups = {BEST_SINGLE: [m for m in SINGLE if m in names], BEST_FUSION: fused}
        repeats = 1 + max(one.repeat for one in rounds)
        right = {name: np.full((repeats, count), np.nan) for name in (*names, *groups)}
        for one in rounds:
            losses = {name: verdict.validation_loss for name, verdict in one.verdicts.items()}
            chosen = {group: min(members, key=losses.__getitem__) for group, members in groups.items()}
            for name, rows in right.items():
                rows[one.repeat, one.parts.test] = one.verdicts[chosen.get(name, name)].right
        return cls(right, [(one.repeat, one.parts.test) for one in rounds])

    def only(self, kept: NDArray[np.bool_]) -> "Scores":
        """Of some of the items."""
        return Scores({name: rows[:, kept] for name, rows in self.right.items()}, [])

    def by_round(self, name: str) -> Floats:
        """The accuracy of a model in each round."""
        return np.array([self.right[name][number, rows].mean() for number, rows in self.tested])


def compare(name: str, data: Dataset, *, repeats: int, folds: int, processes: int) -> list[Result]:
    """Every model's accuracy, and the differences that matter, on a dataset of single labels."""
    request = FineTuneRequest.model_validate({"type": "fine_tune", "features": "job-learn"})
    data, problem = class_problem(data.take(np.argsort(data.ids)), request)
    rounds = list(_rounds(name, data, problem, list(_plan(problem, repeats, folds)), processes))
    scores = Scores.of(rounds, len(data))
    results = [_result(f"{name}/{model}", "accuracy", bootstrap(r), r.shape[1]) for model, r in scores.right.items()]
    single = [model for model in SINGLE if model in scores.right]
    for other in (*single, BEST_SINGLE, *BASELINES):
        results += _difference(name, scores, other)
    results.append(_corrected(name, scores, folds))
    test = np.array(data.splits) == Split.TEST
    return [*results, *(_untouched(name, scores, test) if test.any() else ())]


def _plan(problem: Problem, repeats: int, folds: int) -> Iterator[tuple[int, Parts]]:
    """The parts of each round, with the repeat it belongs to."""
    for number in range(repeats):
        rng = generator(number, "learn")
        for parts in stratified_folds(problem.strata, folds, Splitting().validation, rng):
            yield number, parts


def _rounds(
    name: str, data: Dataset, problem: Problem, plan: Sequence[tuple[int, Parts]], processes: int
) -> Iterator[Round]:
    """Trains and tests, several rounds at a time."""
    begun = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(contend, repeat(data), repeat(problem), [parts for _, parts in plan], [r for r, _ in plan])
        for number, ((of_repeat, parts), verdicts) in enumerate(zip(plan, found, strict=True), 1):
            seconds = time.monotonic() - begun
            print(f"{name}: round {number} of {len(plan)}, {seconds:.0f} s", file=sys.stderr, flush=True)
            yield Round(of_repeat, parts, verdicts)


def _difference(name: str, scores: Scores, other: str) -> Iterable[Result]:
    interval = paired_bootstrap(scores.right[BEST_FUSION], scores.right[other])
    yield _result(f"{name}/{BEST_FUSION} - {other}", DIFFERENCE, interval, scores.right[other].shape[1])


def _corrected(name: str, scores: Scores, folds: int) -> Result:
    """The same difference as its rounds show it."""
    differences = scores.by_round(BEST_FUSION) - scores.by_round(BEST_SINGLE)
    interval = corrected_t(differences, 1 / folds)
    return _result(f"{name}/{BEST_FUSION} - {BEST_SINGLE}", CORRECTED, interval, len(differences))


def _untouched(name: str, scores: Scores, test: NDArray[np.bool_]) -> list[Result]:
    """The difference on those items that come with the split `test`: no setting of ours was ever chosen by them."""
    kept = scores.only(test)
    results = [
        _result(f"{name}-test/{model}", "accuracy", bootstrap(kept.right[model]), int(test.sum()))
        for model in (BEST_SINGLE, BEST_FUSION)
    ]
    return [*results, *_difference(f"{name}-test", kept, BEST_SINGLE)]


def _result(name: str, metric: str, interval: Interval, n: int) -> Result:
    return Result(name, metric, **asdict(interval), n=n)
