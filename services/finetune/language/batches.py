"""Which examples are read together: of like length, or packed into rows; grouped into steps of the optimiser."""

from collections.abc import Sequence

import numpy as np

from shared.language_tuning import LanguageTraining
from shared.ml.tuning import shuffled_batches

#: Examples by their place.
Rows = list[int]


def plan_steps(tokens: Sequence[int], training: LanguageTraining, rng: np.random.Generator) -> list[list[Rows]]:
    """An epoch: the forward passes of each step. Each example is there once."""
    if training.packing:
        passes = pack(tokens, training.max_length, training.batch_size, rng)
    else:
        passes = shuffled_batches(tokens, training.batch_size, rng)
    size = training.gradient_accumulation
    return [passes[first : first + size] for first in range(0, len(passes), size)]


def share_of(
    passes: Sequence[Rows], tokens: Sequence[int], training: LanguageTraining, rank: int, world_size: int
) -> list[Rows]:
    """What one of several processes does of a step: every n-th example of each pass, in as few passes as hold them."""
    share: list[Rows] = []
    for rows in passes:
        mine = rows[rank::world_size]
        if share and _fits([*share[-1], *mine], tokens, training):
            share[-1] = [*share[-1], *mine]
        elif mine:
            share.append(mine)
    return share


def _fits(rows: Rows, tokens: Sequence[int], training: LanguageTraining) -> bool:
    packed = sum(tokens[row] for row in rows) if training.packing else 0
    return len(rows) <= training.batch_size and packed <= training.max_length


def pack(tokens: Sequence[int], room: int, most: int, rng: np.random.Generator) -> list[Rows]:
    """Rows of at most `room` tokens and `most` examples: in a random order, each into the first row that has room."""
    rows: list[Rows] = []
    left: list[int] = []
    begin = 0  # rows before this are full: the search stays short
    for place in rng.permutation(len(tokens)).tolist():
        size = tokens[place]
        row = next((i for i in range(begin, len(rows)) if left[i] >= size and len(rows[i]) < most), None)
        if row is None:
            rows.append([])
            left.append(room)
            row = len(rows) - 1
            begin = max(begin, len(rows) - _OPEN)
        rows[row].append(place)
        left[row] -= size
    return rows


#: So many rows are looked at for a place.
_OPEN = 64
