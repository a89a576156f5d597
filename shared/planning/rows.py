"""What the readers of manifests hand to the planner: one row a line, however the manifest was packed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.items import MediaLocation
from shared.queues import Modality

#: Rows are planned together up to this many, or this many bytes.
BATCH_ROWS = 256
BATCH_BYTES = 8 * 1024**2


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row, or one modality of it, cannot be used: a stable code, and words for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a manifest as its reader found it, not validated yet.

    `line` counts from 1 and names the row if it has no usable id. `fields` are those of `schemas.Item`; every modality
    is among them, if only by name. `media` holds pictures and sounds that the reader has or has located already, and
    `problems` what it could not read: of one modality, or (None) of the whole row. `size` is about its bytes in memory.
    """

    line: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[Modality, bytes | MediaLocation] = field(default_factory=dict)
    problems: Mapping[Modality | None, Problem] = field(default_factory=dict)
    size: int = 0


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in batches, limited in number and bytes."""
    batch: list[Row] = []
    weight = 0
    for row in rows:
        batch.append(row)
        weight += row.size
        if len(batch) == BATCH_ROWS or weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
