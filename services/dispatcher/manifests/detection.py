"""What kind of manifest an object is: told by its content, never by its name."""

import io
import tarfile
from dataclasses import replace

from services.dispatcher.manifests.compressed import unpack_gzip
from services.dispatcher.manifests.grouping import read_groups
from services.dispatcher.manifests.jsonl import read_jsonl
from services.dispatcher.manifests.members import MemberIndex
from services.dispatcher.manifests.parquet import read_parquet
from services.dispatcher.manifests.prefix import index_prefix, read_texts
from services.dispatcher.manifests.ranged import RangedObject
from services.dispatcher.manifests.reading import Reading
from services.dispatcher.manifests.tar import index_tar
from services.dispatcher.manifests.zip import index_zip
from shared.errors import JobError
from shared.items import MediaLocation
from shared.planning import Source

#: How much of an object is looked at.
HEAD_BYTES = 64 * 1024

GZIP = b"\x1f\x8b"
_REFUSED = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def open_object(reading: Reading, key: str) -> Source:
    """The manifest in an object: JSONL, Parquet, tar or zip; JSONL and tar also gzipped.

    Raises JobError: `empty_manifest`, `unsupported_manifest`, and what the readers raise.
    """
    head = reading.store.get(key, length=HEAD_BYTES)
    if head.startswith(GZIP):
        key = unpack_gzip(reading, key)
        head = reading.store.get(key, length=HEAD_BYTES)
    if not head.strip():
        raise JobError("The manifest is empty.", code="empty_manifest")
    if head.startswith(b"PAR1"):
        return Source(read_parquet(reading, key))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(reading, index_zip(reading, key))
    if _is_tar(head):
        return _archive(reading, index_tar(reading, key))
    if _is_jsonl(head):
        size = reading.store.size(key)
        return _jsonl(reading, MediaLocation(key=key, size=size))
    raise JobError(_refusal(head), code="unsupported_manifest")


def open_prefix(reading: Reading, bucket: str, folder: str) -> Source:
    """The manifest under a prefix: `manifest.jsonl`, else items from the objects' names."""
    index = index_prefix(reading, bucket, folder)
    if index.manifest() is None:
        read_texts(reading, index, bucket)
    return replace(_archive(reading, index), bytes=index.bytes())


def _archive(reading: Reading, index: MemberIndex) -> Source:
    manifest = index.manifest()
    if manifest is None:
        return Source(read_groups(index, reading.limits.text_bytes), index.find)
    return Source(_jsonl(reading, manifest).rows, index.find)


def _jsonl(reading: Reading, at: MediaLocation) -> Source:
    window = RangedObject(reading.store, at.key or "", at.size or 0, bucket=at.bucket, start=at.offset)
    return Source(read_jsonl(io.BufferedReader(window, 1024**2), reading.limits.line_bytes))


def _is_tar(head: bytes) -> bool:
    if len(head) < tarfile.BLOCKSIZE:
        return False
    if not any(head[: tarfile.BLOCKSIZE]):
        return True  # an empty archive
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _is_jsonl(head: bytes) -> bool:
    """True if any line begins as an object does: one broken line must not hide the rest."""
    lines = head.removeprefix(b"\xef\xbb\xbf").splitlines()
    return b"\x00" not in head and any(line.lstrip().startswith(b"{") for line in lines)


def _refusal(head: bytes) -> str:
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            return f"The manifest is {name}, which is not read; send JSON lines, Parquet, tar or zip."
    if head.lstrip().startswith(b"["):
        return "The manifest is a JSON array; write one object on each line instead (JSON lines)."
    return "The manifest is neither JSON lines nor Parquet, tar or zip."
