"""A look into a feature set with labels and splits, and who is near whom."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

FUSED = "fused"
_SUFFIX = "_vector"


@dataclass(frozen=True)
class FeatureSpace:
    """A feature set in memory. `vectors` [n, d] have unit length (zeros where `present` [n] is False).

    Both are by column: `text`, `image`, `audio`, as far as the job had them, and `fused`.
    """

    ids: list[str]
    labels: NDArray[np.str_]
    splits: NDArray[np.str_]
    metadata: list[dict[str, Any]]
    vectors: dict[str, Vectors]
    present: dict[str, Mask]

    @property
    def is_finite(self) -> bool:
        """Whether no vector holds an infinity or NaN."""
        return all(bool(np.isfinite(rows).all()) for rows in self.vectors.values())

    @property
    def majority(self) -> float:
        """The share of the test items that has the most frequent label of the training items."""
        names, counts = np.unique(self.labels[self.splits == "train"], return_counts=True)
        return float((self.labels[self.splits == "test"] == names[counts.argmax()]).mean())

    def examples(self, count: int, split: str | None = None) -> list[int]:
        """The first item with all modalities of each label, in order, `count` at most: nobody picked them."""
        complete = np.logical_and.reduce(list(self.present.values()))
        wanted = complete if split is None else complete & (self.splits == split)
        first: dict[str, int] = {}
        for item in np.flatnonzero(wanted).tolist():
            first.setdefault(str(self.labels[item]), item)
        return list(first.values())[:count]


def read_features(path: Path) -> FeatureSpace:
    """The feature set in a Parquet file, as `trivium results` writes it."""
    table = pq.read_table(path)
    columns = [name for name in table.schema.names if pa.types.is_fixed_size_list(table.schema.field(name).type)]
    matrices = {name.removesuffix(_SUFFIX): _matrix(table.column(name)) for name in columns}
    return FeatureSpace(
        ids=table.column("id").to_pylist(),
        labels=np.array([labels[0] if labels else "" for labels in table.column("label").to_pylist()]),
        splits=np.array([split or "" for split in table.column("split").to_pylist()]),
        metadata=[json.loads(text) for text in table.column("metadata").to_pylist()],
        vectors={name: rows for name, (rows, _) in matrices.items()},
        present={name: mask for name, (_, mask) in matrices.items()},
    )


def _matrix(column: pa.ChunkedArray) -> tuple[Vectors, Mask]:
    lists = column.combine_chunks()
    present = np.asarray(lists.is_valid())
    rows = np.zeros((len(lists), lists.type.list_size), np.float32)
    rows[present] = np.asarray(lists.flatten()).reshape(-1, rows.shape[1])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny), present


def neighbours(space: FeatureSpace, column: str, item: int, count: int) -> list[tuple[int, float]]:
    """The `count` other items with the greatest cosine similarity to `item`, nearest first."""
    similarities = space.vectors[column] @ space.vectors[column][item]
    similarities[~space.present[column]] = -np.inf
    similarities[item] = -np.inf
    nearest = np.argsort(-similarities, kind="stable")[:count]
    return [(int(index), float(similarities[index])) for index in nearest]
