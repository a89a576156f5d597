"""Uploaded manifests: JSON lines, gzip, Parquet, and what is none of them."""

import gzip
import io
import json
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.cases import Manifest

_LINE = b'{"id": "a", "text": "x"}\n'


def cases() -> list[Manifest]:
    """All of them."""
    return [
        Manifest(name, *case) for group in (_lines(), _gzip(), _strangers(), _parquet()) for name, case in group.items()
    ]


def _lines() -> dict[str, tuple[bytes, str]]:
    two = [b'{"id": "a", "text": "x"}', b'{"id": "b", "text": "y"}']
    return {
        "JSONL: CRLF": (b"\r\n".join(two), "a ok, b ok"),
        "JSONL: CR alone": (b"\r".join(two), "every_item_failed"),
        "JSONL: blank lines and white space": (b"\n\n \t\n".join(two) + b"\n\n", "a ok, b ok"),
        "JSONL: byte order mark": (b"\xef\xbb\xbf" + b"\n".join(two), "a ok, b ok"),
        "JSONL: line separators of Unicode within": (
            '{"id": "a", "text": "x\u2028y\x85z\x0b"}'.encode(),
            "every_item_failed",
        ),
        "JSONL: no bytes but a line end": (b"\n", "empty_manifest"),
        "JSONL: line over the limit": (
            _LINE + b'{"id": "b", "text": "' + b"x" * 3 * 2**20 + b'"}\n' + b'{"id": "c", "text": "z"}',
            "a ok, c ok, line-2 invalid_item",
        ),
        "JSONL: the same id again": (_LINE * 3, "a ok, a duplicate_id, a duplicate_id"),
        "JSONL: nothing but broken lines": (b"{\n{]\n", "every_item_failed"),
        "JSONL: more items than are allowed": (
            b"".join(b'{"id": "%d", "text": "x"}\n' % i for i in range(3001)),
            "too_many_items",
        ),
    }


def _gzip() -> dict[str, tuple[bytes, str]]:
    packed = gzip.compress(_LINE, mtime=0)
    return {
        "gzip: lines": (packed, "a ok"),
        "gzip: two parts": (packed + gzip.compress(b'{"id": "b", "text": "y"}', mtime=0), "a ok, b ok"),
        "gzip: bomb": (gzip.compress(_LINE * 1_500_000, mtime=0), "archive_too_large"),
        "gzip: bomb of zeros": (gzip.compress(bytes(24 * 2**20), mtime=0), "archive_too_large"),
        "gzip: in gzip": (gzip.compress(packed, mtime=0), "unsupported_manifest"),
        "gzip: cut off": (packed[:-6], "corrupt_archive"),
        "gzip: wrong checksum": (packed[:-8] + b"1234" + packed[-4:], "corrupt_archive"),
        "gzip: noise behind its header": (packed[:10] + np.random.default_rng(1).bytes(500), "corrupt_archive"),
        "gzip: noise behind": (packed + b"noise", "corrupt_archive"),
        "gzip: zeros behind": (packed + bytes(512), "a ok"),
    }


def _strangers() -> dict[str, tuple[bytes, str]]:
    contents = {
        "JSON array": b'[{"id": "a", "text": "x"}]',
        "CSV": b"id,text\na,x\n",
        "UTF-16": _LINE.decode().encode("utf-16"),
        "UTF-32": _LINE.decode().encode("utf-32-be"),
        "HTML": b"<!DOCTYPE html><script>alert(1)</script>",
        "YAML": b"- id: a\n  text: !!python/object/apply:os.system [id]\n",
        "pickle": b"\x80\x04\x95cposix\nsystem\n(S'id'\ntR.",
        "xz": b"\xfd7zXZ\0" + bytes(30),
        "bzip2": b"BZh91AY&SY" + bytes(30),
        "Zstandard": b"\x28\xb5\x2f\xfd" + bytes(30),
        "7-Zip": b"7z\xbc\xaf\x27\x1c" + bytes(30),
        "RAR": b"Rar!\x1a\x07\1\0" + bytes(30),
        "SQLite": b"SQLite format 3\0" + bytes(84),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(30),
        "Arrow": b"ARROW1\0\0" + bytes(30),
        "program": b"\x7fELF\2\1\1" + bytes(57),
        "noise": np.random.default_rng(7).bytes(4000),
    }
    return {f"manifest: {name}": (data, "unsupported_manifest") for name, data in contents.items()}


def _parquet() -> dict[str, tuple[bytes, str]]:
    good = _table(id=["a", "b"], text=["x", "y"])
    noise = np.random.default_rng(8).bytes(2**20)
    nested: Any = "x"
    for _ in range(100):
        nested = {"a": nested}
    footer = struct.unpack("<I", good[-8:-4])[0]
    return {
        "Parquet": (good, "a ok, b ok"),
        "Parquet: no id": (_table(name=["a"]), "unsupported_manifest"),
        "Parquet: ids that are numbers": (_table(id=[1, 2], text=["x", "y"]), "1 ok, 2 ok"),
        "Parquet: ids that are floats": (_table(id=[1.5], text=["x"]), "every_item_failed"),
        "Parquet: ids that are missing": (_table(id=["a", None], text=["x", "y"]), "a ok, line-2 invalid_item"),
        "Parquet: text that is a list": (_table(id=["a"], text=[["x"]]), "every_item_failed"),
        "Parquet: text of bytes that are not UTF-8": (_table(id=["a"], text=[b"\xff"]), "every_item_failed"),
        "Parquet: text of a struct": (_table(id=["a"], text=[{"bytes": b"x"}]), "every_item_failed"),
        "Parquet: text said to be UTF-8 and is not": (
            good.replace(b"\x01\0\0\0x", b"\x01\0\0\0\xff"),
            "corrupt_archive",
        ),
        "Parquet: image of a number": (_table(id=["a"], text=["x"], image=[7]), "every_item_failed"),
        "Parquet: image of an odd struct": (_table(id=["a"], text=["x"], image=[{"url": "x"}]), "a ok"),
        "Parquet: image whose path leads out": (
            _table(id=["a"], text=["x"], image=[{"bytes": None, "path": "../../etc/passwd"}]),
            "a missing_media",
        ),
        "Parquet: metadata 100 deep": (_table(id=["a"], text=["x"], metadata=[nested]), "corrupt_archive"),
        "Parquet: columns of the same name": (
            _parquet_of(pa.table([["a"], ["b"]], names=["id", "id"])),
            "every_item_failed",
        ),
        "Parquet: no rows": (_parquet_of(pa.table({"id": pa.array([], pa.string())})), "empty_manifest"),
        "Parquet: magic alone": (b"PAR1", "corrupt_archive"),
        "Parquet: footer cut off": (good[:-20], "corrupt_archive"),
        "Parquet: footer of 2³²−1 bytes": (good[:-8] + b"\xff\xff\xff\xffPAR1", "corrupt_archive"),
        "Parquet: footer of noise": (good[: -8 - footer] + noise[:footer] + good[-8:], "corrupt_archive"),
        "Parquet: pages of noise": (
            good[:4] + noise[: len(good) - 12 - footer] + good[-8 - footer :],
            "corrupt_archive",
        ),
        "Parquet: encrypted": (good[:-4] + b"PARE", "corrupt_archive"),
        "Parquet: 100,000 rows of the same 2 MiB": (_repeated("text", noise.hex(), 100_000), "archive_too_large"),
        "Parquet: a thousand pictures of the same 1 MiB": (_repeated("image", noise, 1000), "archive_too_large"),
        "Parquet: a thousand metadata of the same 2 MiB": (
            _repeated("metadata", json.dumps(noise.hex()), 1000),
            "archive_too_large",
        ),
        "Parquet: bomb of zeros": (_table(compression="zstd", id=["a"], text=["\0" * 2**26]), "archive_too_large"),
    }


def _table(compression: str = "snappy", **columns: list[Any]) -> bytes:
    return _parquet_of(pa.table(columns), compression=compression)


def _parquet_of(table: pa.Table, **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target, **options)
    return target.getvalue()


def _repeated(column: str, value: str | bytes, rows: int) -> bytes:
    """A column whose one value is stored once and named in every row."""
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))
    if isinstance(value, bytes):
        shared = pa.StructArray.from_arrays([shared], ["bytes"])
    ids = pa.array([str(i) for i in range(rows)])
    return _parquet_of(
        pa.table({"id": ids, column: shared}),
        store_schema=False,
        dictionary_pagesize_limit=2**24,
        write_statistics=False,
    )
