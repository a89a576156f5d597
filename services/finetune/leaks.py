"""Signs that test scores would be too good: items in two parts, and components that give the answer away."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from services.finetune.checks import Finding, listed
from services.finetune.data import Dataset, Rows
from services.finetune.problem import Problem
from shared.ml.splits import Parts
from shared.ml.trained import Task

#: Items whose standardised vectors have at least this cosine are nearly the same.
_NEARLY = 0.999
#: Dimension in which neighbours are looked for first; cosines near 1 hardly change (Johnson and Lindenstrauss, 1984).
_SKETCH = 64
_ROWS_AT_ONCE = 1024
#: Share of a component's variance that the answer explains, above which the component gives the answer away.
_TELLS_ALL = 0.98
_FEWEST_ITEMS = 30


def check_leaks(data: Dataset, problem: Problem, parts: Parts, rng: np.random.Generator) -> list[Finding]:
    """Of the items that are used, as they were divided."""
    return [*check_duplicates(data, parts, rng), *_check_columns(data, problem, parts.train)]


def check_duplicates(data: Dataset, parts: Parts, rng: np.random.Generator) -> Iterable[Finding]:
    """Items outside of training whose vectors a training item has as well, or nearly."""
    held_out = np.concatenate([parts.validation, parts.test])
    sketch = sum(
        (block @ rng.standard_normal((block.shape[1], _SKETCH), np.float32) for block in _blocks(data, parts.train)),
        start=np.zeros((len(data), _SKETCH), np.float32),
    )
    nearest, equal = _nearest(_units(sketch), held_out, parts.train), np.zeros(len(held_out), np.bool_)
    known = {_key(data, row): row for row in parts.train[::-1]}
    for place, row in enumerate(held_out):
        twin = known.get(_key(data, row))
        if twin is not None:
            nearest[place], equal[place] = twin, True
    alike = ~equal & (_cosine(data, parts.train, held_out, nearest) >= _NEARLY)
    alike &= np.logical_and.reduce([present[held_out] == present[nearest] for present in data.present.values()])
    for code, which, what in (
        ("duplicates_across_splits", equal, "the same vectors as"),
        ("near_duplicates_across_splits", alike, "nearly the same vectors as"),
    ):
        if which.any():
            pairs = [f"{data.ids[a]} = {data.ids[b]}" for a, b in zip(held_out[which], nearest[which], strict=True)]
            message = (
                f"{which.sum()} items outside of training have {what} a training item ({listed(pairs, 3)}): they are "
                "known already, and make scores better than they are. Keep copies in one split."
            )
            yield Finding(code, "warning", message)


def _check_columns(data: Dataset, problem: Problem, train: Rows) -> Iterable[Finding]:
    for modality, rows in data.vectors.items():
        used = train[data.present[modality][train]]
        if len(used) < _FEWEST_ITEMS:
            continue
        told = _explained(rows[used], problem, used)
        best = int(told.argmax())
        if told[best] >= _TELLS_ALL:
            message = (
                f"Component {best} of the {modality.value} vectors gives the answer away: the answer explains "
                f"{told[best]:.1%} of its variance. Encoders seldom find such a thing; see that the answer is not "
                f"part of the {modality.value} itself."
            )
            yield Finding("telltale_column", "warning", message)


def _explained(rows: NDArray[np.float32], problem: Problem, used: Rows) -> NDArray[np.float64]:
    """The share of each component's variance [d] that the answers explain: η² of single labels, else the best r²."""
    rows = rows - rows.mean(axis=0)
    total = np.maximum((rows**2).sum(axis=0), np.finfo(np.float32).tiny)
    if problem.task is Task.SINGLE_LABEL:
        groups = problem.strata[used].astype(np.float32)
        sums, counts = groups.T @ rows, groups.sum(axis=0)
        between = (sums[counts > 0] ** 2 / counts[counts > 0, None]).sum(axis=0)
        return np.asarray(between / total, np.float64)
    answers = problem.answers[used].reshape(len(used), -1)
    answers = (answers - answers.mean(axis=0)).astype(np.float32)
    length = np.maximum((answers**2).sum(axis=0), np.finfo(np.float32).tiny)
    return np.asarray(((answers.T @ rows) ** 2 / length[:, None] / total).max(axis=0), np.float64)


def _blocks(data: Dataset, train: Rows) -> Iterator[NDArray[np.float32]]:
    """Each modality's vectors [n, d_m], every component of variance 1 in training, zeros where it is missing."""
    for modality, rows in data.vectors.items():
        present = data.present[modality]
        used = rows[train][present[train]]
        if len(used):
            mean, std = used.mean(axis=0), used.std(axis=0)
            yield np.where(present[:, None], (rows - mean) / np.where(std > 0, std, 1), np.float32(0))


def _cosine(data: Dataset, train: Rows, a: Rows, b: Rows) -> NDArray[np.float32]:
    """Of all modalities side by side, standardised: items a against items b."""
    products = np.zeros((3, len(a)), np.float32)
    for block in _blocks(data, train):
        x, y = block[a], block[b]
        products += [(x * y).sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1)]
    lengths = np.maximum(np.sqrt(products[1] * products[2]), np.finfo(np.float32).tiny)
    return np.asarray(products[0] / lengths, np.float32)


def _nearest(sketch: NDArray[np.float32], held_out: Rows, train: Rows) -> Rows:
    """The training item nearest to each, by the cosine of sketches."""
    parts = [
        train[(sketch[held_out[first : first + _ROWS_AT_ONCE]] @ sketch[train].T).argmax(axis=1)]
        for first in range(0, len(held_out), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _units(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _key(data: Dataset, row: int) -> tuple[bytes | None, ...]:
    """What is equal if and only if the vectors are."""
    return tuple(blake2b(v[row]).digest() if data.present[m][row] else None for m, v in data.vectors.items())
