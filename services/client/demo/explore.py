"""A look into a feature set with labels and splits: who is near whom, and how well labels can be told."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

FUSED = "fused"
_SUFFIX = "_vector"
NEIGHBOURS = 10


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

    def complete(self) -> list[int]:
        """The items that have all modalities, in order."""
        return np.flatnonzero(np.logical_and.reduce(list(self.present.values()))).tolist()


@dataclass(frozen=True)
class Score:
    """How many of the test items that have a modality get their right label by its vectors, as shares.

    `neighbours`: by vote of the `NEIGHBOURS` nearest train items (cosine). `linear`: by a linear classifier (ridge
    regression on ±1), the usual probe of frozen features.
    """

    tested: int
    neighbours: float
    linear: float


@dataclass(frozen=True)
class Look:
    """Scores by column, and the share that always guessing the most frequent train label would get."""

    scores: dict[str, Score]
    majority: float

    @property
    def fused(self) -> Score:
        """The score of the fused vectors."""
        return self.scores[FUSED]


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


def look_at(space: FeatureSpace) -> Look:
    """How well the labels of the test items can be told from the vectors of the train items."""
    [(majority, _)] = Counter(space.labels[space.splits == "train"].tolist()).most_common(1)
    share = float((space.labels[space.splits == "test"] == majority).mean())
    return Look({column: _score(space, column) for column in space.vectors}, share)


def _score(space: FeatureSpace, column: str) -> Score:
    train = (space.splits == "train") & space.present[column]
    test = (space.splits == "test") & space.present[column]
    rows, labels = space.vectors[column], space.labels
    # One thread: on so few items, more only wait for each other.
    with threadpool_limits(1):
        nearest = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance").fit(rows[train], labels[train])
        linear = RidgeClassifier(alpha=1.0).fit(rows[train], labels[train])
        return Score(
            tested=int(test.sum()),
            neighbours=float(nearest.score(rows[test], labels[test])),
            linear=float(linear.score(rows[test], labels[test])),
        )
