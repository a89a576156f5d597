"""One part of a feature set as Parquet, opened as it is by pandas, polars, DuckDB and Hugging Face datasets."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.items import PlannedItem
from shared.queues import Modality

Vectors = NDArray[np.float32]


def feature_schema(dimensions: Mapping[str, int], metadata: Mapping[str, Any], *, messages: bool = False) -> pa.Schema:
    """The columns of a job's feature set: one schema for all its parts, with what made it as JSON in the metadata.

    `dimensions` has the modalities and `fused`; a modality that is not wanted has dimension 0 and no column.
    `messages`: for a language model, which reads conversations (JSON).
    """
    vectors = [
        pa.field(column_of(name), pa.list_(pa.float32(), dimension))
        for name in (*Modality, "fused")
        if (dimension := dimensions.get(name, 0)) > 0
    ]
    fields = [
        pa.field("id", pa.string(), nullable=False),
        *vectors,
        pa.field("label", pa.list_(pa.string()), nullable=False),
        pa.field("target", pa.string()),
        pa.field("split", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image_ref", pa.string()),
        pa.field("audio_ref", pa.string()),
        *([pa.field("messages", pa.string())] if messages else []),
    ]
    return pa.schema(fields, metadata={"trivium": json.dumps(metadata, ensure_ascii=False, sort_keys=True)})


def column_of(name: str) -> str:
    """`text` → `text_vector`; `fused` stays."""
    return name if name == "fused" else f"{Modality(name).value}_vector"


def write_part(
    schema: pa.Schema,
    items: Sequence[PlannedItem],
    vectors: Mapping[str, Vectors],
    present: Mapping[str, NDArray[np.bool_]],
) -> bytes:
    """The items and their vectors (float32 [n, d]; null where `present` is False) as one Parquet file."""
    columns: dict[str, Any] = {
        "id": [item.id for item in items],
        "label": [item.label for item in items],
        "target": [None if item.target is None else json.dumps(item.target) for item in items],
        "split": [item.split for item in items],
        "metadata": [json.dumps(item.metadata, ensure_ascii=False) for item in items],
        "text": [item.text for item in items],
        "image_ref": [item.image.ref if item.image else None for item in items],
        "audio_ref": [item.audio.ref if item.audio else None for item in items],
        "messages": [_conversation(item) for item in items],
    }
    for name, rows in vectors.items():
        columns[column_of(name)] = _fixed_size_lists(rows, present[name])
    table = pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) if isinstance(columns[field.name], list) else columns[field.name]
         for field in schema],
        schema=schema,
    )  # fmt: skip
    target = io.BytesIO()
    # Dictionaries and statistics of random floats only cost time and bytes.
    pq.write_table(table, target, compression="zstd", use_dictionary=["split"], write_statistics=["id", "split"])
    return target.getvalue()


def _conversation(item: PlannedItem) -> str | None:
    if item.messages is None:
        return None
    return json.dumps([message.model_dump() for message in item.messages], ensure_ascii=False)


def _fixed_size_lists(rows: Vectors, present: NDArray[np.bool_]) -> pa.Array:
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=pa.array(~present))
