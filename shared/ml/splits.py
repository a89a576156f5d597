"""Which items train, which judge, and which are only tested on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from shared.errors import JobError
from shared.fine_tuning import FineTuneRequest, Method, Splitting
from shared.items import PlannedItem, Split
from shared.ml.repeatable import generator

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

#: Numbers are stratified by this many quantiles, if there are ten items for each.
_BINS = 10


@dataclass(frozen=True)
class Parts:
    """Rows of each part, ascending, and in words how they came about."""

    train: Rows
    validation: Rows
    test: Rows
    notes: list[str] = field(default_factory=list)

    def named(self) -> dict[Split, Rows]:
        """By name."""
        return {Split.TRAIN: self.train, Split.VALIDATION: self.validation, Split.TEST: self.test}


def split_items(items: Iterable[PlannedItem], request: FineTuneRequest) -> dict[str, Split]:
    """The part of each item that has an answer, by id: always the same for the same items, whatever their order.

    Of all items of a job, so that those who train agree even if they cannot read the same ones. Raises JobError
    (`too_few_items`).
    """
    asked = sorted((i for i in items if answer_of(i, request.method) is not None), key=lambda item: item.id)
    if not asked:
        wanted = "a number as target" if request.method is Method.REGRESSOR else "a label"
        raise JobError(f"No item has {wanted}, and training needs some that do.", code="too_few_items")
    if request.method is Method.REGRESSOR:
        strata = quantile_strata(np.array([item.target for item in asked], np.float64))
    else:
        places = {name: place for place, name in enumerate(sorted({name for item in asked for name in item.label}))}
        strata = np.zeros((len(asked), len(places)), np.bool_)
        for row, item in zip(strata, asked, strict=True):
            row[[places[name] for name in item.label]] = True
    rng = generator(request.training.seed, "split")
    parts = divide([item.split for item in asked], strata, request.splitting, rng)
    return {asked[row].id: part for part, rows in parts.named().items() for row in rows}


def answer_of(item: PlannedItem, method: Method) -> list[str] | float | None:
    """What a model should say of an item: its labels, or a number; None if nobody knows."""
    if method is not Method.REGRESSOR:
        return item.label or None
    return item.target if isinstance(item.target, float | int) and isfinite(item.target) else None


def divide(given: Sequence[str | None], strata: Mask, options: Splitting, rng: np.random.Generator) -> Parts:
    """Items with a given split keep it; the rest is divided at random with each stratum in the same proportions.

    A part that nobody gave is drawn from the items without a split, or if they are too few from those given for
    training too. What is then left without a split trains. `strata`, bool [n, s], is what is to be proportional.
    Raises JobError (`too_few_items`).
    """
    marks = np.array([split or "" for split in given], "U10")
    free, notes = marks == "", []
    wanted = {Split.TEST: options.test, Split.VALIDATION: options.validation}
    missing = {part: share for part, share in wanted.items() if not (marks == part).any()}
    if missing:
        drawn = _draw(marks, missing, strata, rng)
        for part, rows in drawn.items():
            if not free.all():
                source = "without a split" if free[rows].all() else "given for training"
                notes.append(f"No item was given for {part}: {len(rows)} items {source} were drawn for it.")
            marks[rows] = part
    elif free.any():
        notes.append(f"{free.sum()} items without a split are used for training.")
    marks[marks == ""] = Split.TRAIN
    parts = {part: np.flatnonzero(marks == part) for part in Split}
    if not all(len(rows) for rows in parts.values()):
        sizes = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
        raise JobError(f"Each part needs items, but there are: {sizes}. Give more items.", code="too_few_items")
    return Parts(parts[Split.TRAIN], parts[Split.VALIDATION], parts[Split.TEST], notes)


def _draw(
    marks: NDArray[np.str_], missing: dict[Split, float], strata: Mask, rng: np.random.Generator
) -> dict[Split, Rows]:
    """Rows for each missing part: its share of all items, but if some were given half of those for training at most."""
    free, training = marks == "", (marks == "") | (marks == Split.TRAIN)
    count = sum(missing.values()) * len(marks)
    if not free.all():
        count = min(count, training.sum() / 2)
    pool = np.flatnonzero(free if free.sum() >= count else training)
    if not len(pool):
        return {}
    each = count / sum(missing.values())
    shares = [len(pool) - count, *(share * each for share in missing.values())]
    place = stratify(strata[pool], shares, rng)
    return {part: pool[place == i] for i, part in enumerate(missing, 1)}


def stratify(strata: Mask, shares: Sequence[float], rng: np.random.Generator) -> NDArray[np.intp]:
    """The part [n] of each item, so that every stratum is divided by `shares` as nearly as it can be.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML 2011):
    the rarest stratum first, each item to the part that wants most of that stratum. With one stratum an item, each part
    gets its share of each stratum, rounded up or down.
    """
    sizes = strata.sum(axis=0)
    total = sum(shares)
    wanted = [(sizes * (share / total)).tolist() for share in shares]
    room = [len(strata) * share / total for share in shares]
    part = np.full(len(strata), -1, np.intp)
    of_item = [np.flatnonzero(row).tolist() for row in strata]
    left = sizes.copy()
    while (left > 0).any():
        stratum = int(np.argmin(np.where(left > 0, left, len(strata) + 1)))
        members = np.flatnonzero(strata[:, stratum] & (part < 0))
        for item in rng.permutation(members):
            best = max(range(len(shares)), key=lambda p: (wanted[p][stratum], room[p], -p))
            part[item] = best
            room[best] -= 1
            for other in of_item[item]:
                wanted[best][other] -= 1
        left -= strata[members].sum(axis=0)
    for item in rng.permutation(np.flatnonzero(part < 0)):
        part[item] = best = max(range(len(shares)), key=lambda p: (room[p], -p))
        room[best] -= 1
    return part


def quantile_strata(values: NDArray[np.float64]) -> Mask:
    """Bool [n, s]: the quantile that each number falls into."""
    bins = max(min(_BINS, len(values) // 10), 1)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="right")
    strata: Mask = place[:, None] == np.arange(len(edges) + 1)
    return strata
