"""Parquet: the columns that items have, media inside or beside, as pandas and Hugging Face datasets write them."""

import io
import json
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.dispatcher.manifests.detection import open_object
from services.dispatcher.manifests.reading import Reading
from shared.errors import JobError, UnavailableError
from shared.settings import Limits
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, TOKEN, Planned, media_bytes, plan_source


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def plan(data: bytes, store: MemoryStore | None = None, **limits: Any) -> tuple[Planned, MemoryStore]:
    store = store or MemoryStore()
    store.put("manifest", data)
    reading = Reading(store, Limits(**limits), JOB_ID, TOKEN)
    return plan_source(open_object(reading, "manifest"), store, limits=reading.limits), store


def test_columns_become_fields_and_others_are_left_alone() -> None:
    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": ["a", None, "c"],
            "image": [None, "img/none.png", None],
            "label": [["x", "y"], None, ["z"]],
            "target": [0.5, None, 2.0],
            "split": ["train", "test", "dev"],
            "metadata": [{"day": date(2026, 11, 1), "n": 1}, None, {"day": None, "n": 2}],
            "embedding": [[1.0], [2.0], [3.0]],
        }
    )
    found, _ = plan(parquet(table))
    assert found.outcome == {"1": [], "2": ["missing_media", "no_usable_modality"], "3": ["invalid_item"]}
    [item] = found.items
    assert (item.text, item.label, item.target, item.split) == ("a", ["x", "y"], 0.5, "train")
    assert item.metadata == {"day": "2026-11-01", "n": 1}


@pytest.mark.parametrize("size", [10, 9000])
@pytest.mark.parametrize("layout", ["binary", "large_binary", "struct"])
def test_media_inside_the_file_are_written_beside_the_slices(layout: str, size: int) -> None:
    pictures = [bytes([i]) * size for i in range(20)]
    values: Any = [{"bytes": p, "path": f"{i}.png"} for i, p in enumerate(pictures)] if layout == "struct" else pictures
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if layout == "struct" else getattr(pa, layout)()
    table = pa.table({"id": [str(i) for i in range(20)], "image": pa.array(values, type)})
    found, store = plan(parquet(table, row_group_size=7))
    assert len(found.items) == 20
    for item, picture in zip(found.items, pictures, strict=True):
        assert item.image is not None
        if size > 4096:
            assert media_bytes(store, item.image) == picture
        assert item.image.size == size
        assert item.image.ref == (f"{item.index}.png" if layout == "struct" else "")


def test_a_struct_without_bytes_is_a_reference() -> None:
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": None, "path": "gone.png"}, {"bytes": None, "path": None}, None]
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "image": pa.array(values, type)})
    found, _ = plan(parquet(table))
    assert found.outcome == {"a": ["missing_media"], "b": [], "c": []}


def test_class_labels_of_hugging_face_get_their_names() -> None:
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "label": [1, 0, -1]})
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    assert [item.label for item in plan(parquet(named))[0].items] == [["dog"], ["cat"], []]
    assert [item.label for item in plan(parquet(table))[0].items] == [["1"], ["0"], ["-1"]]


def test_metadata_may_be_json_or_a_map() -> None:
    texts = pa.table({"id": ["a", "b"], "text": ["x", "y"], "metadata": ['{"k": 1}', "{"]})
    found, _ = plan(parquet(texts))
    assert found.outcome == {"a": [], "b": ["invalid_item"]}
    assert found.items[0].metadata == {"k": 1}
    maps = pa.table({"id": ["a"], "text": ["x"], "metadata": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))})
    assert plan(parquet(maps))[0].items[0].metadata == {"k": 1}


def test_dictionary_columns_are_read() -> None:
    table = pa.table({"id": ["a", "b"], "text": pa.array(["x", "x"]).dictionary_encode()})
    assert [item.text for item in plan(parquet(table))[0].items] == ["x", "x"]


def test_a_file_without_ids_is_refused_by_naming_its_columns() -> None:
    with pytest.raises(JobError, match="caption") as caught:
        plan(parquet(pa.table({"caption": ["x"]})))
    assert caught.value.error_code == "unsupported_manifest"


def test_a_damaged_file_is_refused() -> None:
    data = parquet(pa.table({"id": ["a"] * 1000, "text": ["x"] * 1000}))
    for broken in (data[:-9], data[:4] + bytes(100) + data[104:], b"PAR1"):
        with pytest.raises(JobError) as caught:
            plan(broken)
        assert caught.value.error_code == "corrupt_archive"


def test_a_file_that_unpacks_to_too_much_is_refused() -> None:
    table = pa.table({"id": [str(i) for i in range(100)], "text": ["x" * 200_000] * 100})
    data = parquet(table, use_dictionary=False, compression="zstd")
    with pytest.raises(JobError) as caught:
        plan(data)
    assert caught.value.error_code == "archive_too_large"


def test_an_outage_while_reading_stays_an_outage() -> None:
    class FailingStore(MemoryStore):
        reads = 0

        def get(self, key: str, **options: Any) -> bytes:
            self.reads += 1
            if self.reads > 2:
                raise UnavailableError("storage is away")
            return super().get(key, **options)

    incompressible = [hash((i, "x")).to_bytes(8, "little", signed=True).hex() * 64 for i in range(20_000)]
    table = pa.table({"id": [str(i) for i in range(20_000)], "text": incompressible})
    with pytest.raises(UnavailableError):
        plan(parquet(table, compression="none", use_dictionary=False, row_group_size=2000), FailingStore())
