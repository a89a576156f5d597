"""A feature set in memory, as training needs it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.errors import JobError
from shared.queues import Modality

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Dataset:
    """Rows of a feature set: `vectors` [n, d_m] and where they are `present` [n], by modality in its order.

    `targets` [n] are NaN where there is none, and where it is text: `text_targets` are the ids of those items.
    """

    ids: list[str]
    vectors: dict[Modality, Vectors]
    present: dict[Modality, Mask]
    labels: list[list[str]]
    targets: NDArray[np.float64]
    splits: list[str | None]
    text_targets: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimensions(self) -> dict[Modality, int]:
        """d_m of each modality."""
        return {m: rows.shape[1] for m, rows in self.vectors.items()}

    def usable(self) -> Mask:
        """Bool [n]: the items that have any of the modalities."""
        usable: Mask = np.logical_or.reduce(list(self.present.values()))
        return usable

    def take(self, rows: Sequence[int] | Rows) -> "Dataset":
        """These rows, in this order."""
        index = np.asarray(rows, np.intp)
        return replace(
            self,
            ids=[self.ids[i] for i in index],
            vectors={m: v[index] for m, v in self.vectors.items()},
            present={m: p[index] for m, p in self.present.items()},
            labels=[self.labels[i] for i in index],
            targets=self.targets[index],
            splits=[self.splits[i] for i in index],
        )

    def only(self, modalities: Iterable[Modality]) -> "Dataset":
        """The same rows with these modalities alone."""
        kept = list(modalities)
        return replace(self, vectors={m: self.vectors[m] for m in kept}, present={m: self.present[m] for m in kept})


def read_parts(tables: Iterable[pa.Table], dimensions: Mapping[Modality, int]) -> Dataset:
    """The parts of a feature set (see services/fusion/parquet.py) as one dataset.

    `dimensions` names the modalities that are read; a part without the column of one has it nowhere. Vectors with
    infinities or NaN count as missing. Raises JobError (`dimension_mismatch`).
    """
    wanted = {m: dimensions[m] for m in Modality if dimensions.get(m)}
    vectors: dict[Modality, list[Vectors]] = {m: [] for m in wanted}
    present: dict[Modality, list[Mask]] = {m: [] for m in wanted}
    columns: dict[str, list[object]] = {name: [] for name in ("id", "label", "target", "split")}
    for table in tables:
        for name, values in columns.items():
            values.extend(table.column(name).to_pylist())
        for modality, dimension in wanted.items():
            rows, mask = _matrix(table, modality, dimension)
            vectors[modality].append(rows)
            present[modality].append(mask)
    targets = [None if text is None else json.loads(str(text)) for text in columns["target"]]
    ids = [str(id) for id in columns["id"]]
    return Dataset(
        ids=ids,
        vectors={m: np.concatenate([np.zeros((0, d), np.float32), *vectors.pop(m)]) for m, d in wanted.items()},
        present={m: np.concatenate([np.zeros(0, np.bool_), *present[m]]) for m in wanted},
        labels=[list(labels) for labels in columns["label"]],  # type: ignore[call-overload]
        targets=np.array([t if isinstance(t, int | float) else np.nan for t in targets], np.float64),
        splits=[None if split is None else str(split) for split in columns["split"]],
        text_targets=frozenset(id for id, target in zip(ids, targets, strict=True) if isinstance(target, str)),
    )


def _matrix(table: pa.Table, modality: Modality, dimension: int) -> tuple[Vectors, Mask]:
    rows, present = np.zeros((table.num_rows, dimension), np.float32), np.zeros(table.num_rows, np.bool_)
    name = f"{modality.value}_vector"
    if name not in table.column_names:
        return rows, present
    column = table.column(name).combine_chunks()
    if column.type.list_size != dimension:
        message = f"The {modality.value} vectors have {column.type.list_size} components in one part, not {dimension}."
        raise JobError(message, code="dimension_mismatch")
    present |= np.asarray(column.is_valid())
    rows[present] = np.asarray(column.flatten()).reshape(-1, dimension)
    finite = np.isfinite(rows).all(axis=1)
    rows[~finite] = 0
    return rows, present & finite
