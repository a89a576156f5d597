"""A feature set as one file: JSON lines, Parquet or npz, streamed; one part of it is in memory at a time."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.errors import TooLargeError, TriviumError
from shared.schemas import Part
from shared.storage.objects import ObjectStore

#: Columns that hold JSON as text; in JSON lines they become what they stand for.
_JSON_COLUMNS = frozenset({"metadata", "target"})

#: Beside the vectors, what an npz holds; the rest is text for people.
_NPZ_COLUMNS = ("id", "label", "target", "split")

#: Rows that become JSON at a time.
_LINES = 64


class FeatureSet:
    """The parts of a job's feature set, read in the order of the items and checked against the hashes in their rows."""

    def __init__(self, store: ObjectStore, parts: Sequence[Part]):
        self._store, self._parts = store, parts
        self.rows = sum(part.rows for part in parts)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts as tables, all columns or some."""
        for part in self._parts:
            yield pq.read_table(io.BytesIO(self._read(part)), columns=columns)

    def schema(self) -> pa.Schema:
        """The columns, the same for all parts, with what made them in the metadata."""
        return pq.read_schema(io.BytesIO(self._read(self._parts[0])))

    def _read(self, part: Part) -> bytes:
        data = self._store.get(part.key)
        if sha256(data).hexdigest() != part.sha256:
            raise TriviumError(
                f"The part {part.index} of the feature set is not what was written.", code="corrupt_part"
            )
        return data


def as_jsonl(features: FeatureSet) -> Iterator[bytes]:
    """One JSON object a line: the columns by name, vectors as lists (null where missing), metadata as an object."""
    for table in features.tables():
        for batch in table.to_batches(max_chunksize=_LINES):
            columns = {name: _json_values(name, batch.column(name)) for name in batch.schema.names}
            rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            yield b"".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for row in rows)


def as_parquet(features: FeatureSet) -> Iterator[bytes]:
    """One Parquet file, a row group a part, with the parts' schema and metadata."""
    schema, sink = features.schema(), _Sink()
    with pq.ParquetWriter(
        pa.PythonFile(sink, mode="w"), schema, compression="zstd", use_dictionary=["split"]
    ) as writer:
        for table in features.tables():
            writer.write_table(table.cast(schema))
            yield sink.take()
    yield sink.take()


def as_npz(features: FeatureSet, limit: int) -> Iterator[bytes]:
    """A zip of `.npy` arrays: each vector column as float32 [n, d] (NaN where missing), and `id`, `label`, `target` and
    `split` as strings [n] (`label` is a JSON list, `target` JSON; empty where missing).

    Raises TooLargeError (`results_too_large`) before the first byte if the arrays are over `limit` bytes.
    """
    vectors = {field.name: field.type.list_size for field in features.schema() if _is_vector(field.type)}
    texts = _text_arrays(features)
    size = 4 * features.rows * sum(vectors.values()) + sum(array.nbytes for array in texts.values())
    if size > limit:
        message = (
            f"These results take {size} bytes as npz, over the {limit} allowed; ask for parquet, or for the parts."
        )
        raise TooLargeError(message, code="results_too_large", param="format")
    return _npz(features, vectors, texts)


def _npz(features: FeatureSet, vectors: dict[str, int], texts: dict[str, NDArray[np.str_]]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, array in texts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            yield sink.take()
        for name, dimension in vectors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (features.rows, dimension)}
                np.lib.format.write_array_header_1_0(member, header)
                for table in features.tables([name]):
                    member.write(_matrix(table.column(name), dimension).tobytes())
                    yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that is only written to, and emptied as it grows."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer, self._position = bytearray(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._buffer += data
        self._position += len(data)
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        data, self._buffer = bytes(self._buffer), bytearray()
        return data


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _matrix(column: pa.ChunkedArray | pa.Array, dimension: int) -> NDArray[np.float32]:
    """A column of vectors as [n, dimension], NaN where there is none."""
    present = np.asarray(column.is_valid())
    matrix = np.full((len(column), dimension), np.nan, np.float32)
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    matrix[present] = np.asarray(flat.flatten()).reshape(-1, dimension)
    return matrix


def _json_values(name: str, column: pa.Array) -> Iterable[Any]:
    if _is_vector(column.type):
        matrix = _matrix(column, column.type.list_size)
        return [row if present else None for row, present in zip(matrix, column.is_valid().to_pylist(), strict=True)]
    values: list[Any] = column.to_pylist()
    if name in _JSON_COLUMNS:
        return [None if value is None else orjson.Fragment(value) for value in values]
    return values


def _text_arrays(features: FeatureSet) -> dict[str, NDArray[np.str_]]:
    texts: dict[str, list[str]] = {name: [] for name in _NPZ_COLUMNS}
    for table in features.tables(list(_NPZ_COLUMNS)):
        for name, values in texts.items():
            values.extend(_text(value) for value in table.column(name).to_pylist())
    return {name: np.array(values, dtype=np.str_) for name, values in texts.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
