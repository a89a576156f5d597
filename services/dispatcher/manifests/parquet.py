"""Parquet files, Hugging Face datasets' among them: the columns that items have; others are left alone."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json, to_jsonable_python

from services.dispatcher.manifests.ranged import RangedObject
from services.dispatcher.manifests.reading import Reading, corrupt
from shared.errors import JobError
from shared.items import Item, MediaLocation
from shared.planning import Problem, Row
from shared.queues import Modality

#: Rows decoded together, fewer where they might unpack to more bytes than this.
BATCH_ROWS = 1024
BATCH_BYTES = 64 * 1024**2

#: Column chunks are read through a window of this size, never whole.
WINDOW_BYTES = 4 * 1024**2

_MEDIA = (Modality.IMAGE, Modality.AUDIO)


def read_parquet(reading: Reading, key: str) -> Iterator[Row]:
    """A row per row. `image` and `audio` hold references, bytes, or Hugging Face's struct of bytes and path.

    Raises JobError: `corrupt_archive`, `archive_too_large`, `unsupported_manifest` (no column `id`).
    """
    raw = RangedObject(reading.store, key, reading.store.size(key))
    try:
        with io.BufferedReader(raw) as file, pq.ParquetFile(file, buffer_size=WINDOW_BYTES, pre_buffer=False) as table:
            schema, columns = table.schema_arrow, _columns(table.schema_arrow)
            groups = range(table.metadata.num_row_groups)
            reading.check_unpacked(sum(table.metadata.row_group(i).total_byte_size for i in groups), raw.size)
            classes, line, unpacked = _class_names(schema), 0, 0
            size = _batch_rows(table.metadata, columns)
            for batch in table.iter_batches(batch_size=size, columns=columns, use_threads=False):
                unpacked += batch.nbytes
                reading.check_unpacked(unpacked, raw.size)
                for values in batch.to_pylist(maps_as_pydicts="lossy"):
                    line += 1
                    yield _row(line, values, classes)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        # The last two: strings that are not UTF-8, dates that Python has not.
        raise corrupt(error) from error


def _columns(schema: pa.Schema) -> list[str]:
    columns = [name for name in schema.names if name in Item.model_fields]
    if "id" not in columns:
        message = f"The Parquet file has no column 'id'; it has: {', '.join(schema.names[:50])}."
        raise JobError(message, code="unsupported_manifest")
    return columns


def _batch_rows(metadata: pq.FileMetaData, columns: list[str]) -> int:
    """How many rows to decode together: what a column chunk holds once, in a dictionary, may stand in each of them."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    sizes = (chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, max(sizes, default=1))))


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The names behind the numbers in `label`, where a Hugging Face dataset says them."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _row(line: int, values: dict[str, Any], classes: list[str] | None) -> Row:
    fields = {name: value for name, value in values.items() if value is not None}
    media: dict[Modality, bytes | MediaLocation] = {}
    for modality in _MEDIA:
        reference, data = _reference(fields.pop(modality, None))
        if data is not None:
            media[modality] = data
        if reference or data is not None:
            fields[modality] = reference
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    if "label" in fields:
        fields["label"] = _label(fields["label"], classes)
    size = sum(len(value) for value in [*media.values(), fields.get("text")] if isinstance(value, bytes | str))
    try:
        fields["metadata"] = _metadata(fields.get("metadata", {}))
    except ValueError as error:
        return Row(line, fields, problems={None: Problem("invalid_item", f"metadata: it is not JSON: {error}.")})
    return Row(line, fields, media, size=size)


def _reference(value: Any) -> tuple[Any, bytes | None]:
    """What a media column calls its content, and the content if it is there."""
    if isinstance(value, bytes):
        return "", value
    if isinstance(value, dict):
        return value.get("path") or "", value.get("bytes")
    return value, None


def _label(value: Any, classes: list[str] | None) -> Any:
    """Labels are words: numbers become the names of their classes, or their digits."""
    if isinstance(value, list):
        return [_label(one, classes) for one in value]
    if not isinstance(value, int):
        return value
    if classes is None:
        return str(value)
    return classes[value] if 0 <= value < len(classes) else None  # −1 says "no label" in these datasets


def _metadata(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else to_jsonable_python(value, bytes_mode="base64", fallback=str)
