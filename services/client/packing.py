"""From what people have (a manifest beside its media, a folder, an archive, records) to what a job takes.

A manifest that names local media becomes a tar on the fly: the manifest first, then each file once, in the order of
first mention, pictures before sounds. The same files give the same bytes (no times, no owners).
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic_core import to_jsonable_python

from services.client.errors import ClientError
from services.client.uploads import Chunks, Upload, bytes_upload, file_chunks, file_upload, size_of
from shared.items import Item
from shared.schemas import Input

Records = Iterable[Item | Mapping[str, Any]]
#: A path, a `file-…` id, an `s3://` prefix, a `job-…` id (its feature set), or the records themselves.
Source = str | Path | Records

MANIFEST = "manifest.jsonl"
#: Up to this many bytes of records travel in the job's own request.
INLINE_BYTES = 1024**2
_INLINE_ITEMS = 1000
_MEDIA_FIELDS = ("image", "audio")
_REMOTE = re.compile(r"file-[0-9a-z]{26}$|data:|[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class _Member:
    """A file of the tar."""

    name: str
    size: int
    chunks: Chunks

    @property
    def header(self) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.size = self.size
        return info.tobuf(tarfile.PAX_FORMAT)

    @property
    def padding(self) -> bytes:
        return bytes(-self.size % tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class FeatureSet:
    """What an earlier job made of its items."""

    job_id: str


#: What has to be uploaded, what the gateway has already, or inline items.
Prepared = Upload | Input | FeatureSet | list[dict[str, Any]]


def prepare(source: Source) -> Prepared:
    """What `source` becomes: an upload, what the gateway has already, or inline items.

    Raises ClientError: `no_such_file`, `unreadable_file`, `unsafe_path`, `missing_media`, `empty_manifest`.
    """
    if not isinstance(source, str | Path):
        return _prepare_records(source)
    if isinstance(source, str) and re.fullmatch(r"file-[0-9a-z]{26}", source):
        return Input(file_id=source, s3_prefix=None)
    if isinstance(source, str) and source.startswith("s3://"):
        return Input(s3_prefix=source, file_id=None)
    if isinstance(source, str) and re.fullmatch(r"job-[0-9a-z]{26}", source):
        return FeatureSet(source)
    path = Path(source)
    if not path.exists():
        raise ClientError(f"There is no file or folder {path}.", code="no_such_file")
    if path.is_dir():
        manifest = path / MANIFEST
        return _prepare_manifest(manifest) if manifest.exists() else _pack_folder(path)
    return _prepare_manifest(path) if path.suffix in {".jsonl", ".ndjson"} else file_upload(path)


def _prepare_records(records: Records) -> Upload | list[dict[str, Any]]:
    items: list[dict[str, Any]] = [to_jsonable_python(record, exclude_none=True) for record in records]
    lines = [json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items]
    if not items:
        raise ClientError("There are no items.", code="empty_manifest")
    content = b"".join(lines)
    media = _local_media(lines)
    if media:
        return _pack(_Member(MANIFEST, len(content), lambda: iter([content])), media, Path.cwd(), "items.tar")
    if len(items) <= _INLINE_ITEMS and len(content) <= INLINE_BYTES:
        return items
    return bytes_upload("items.jsonl", content)


def _prepare_manifest(path: Path) -> Upload:
    with path.open("rb") as lines:
        media = _local_media(lines)
    if not media:
        return file_upload(path)
    manifest = _Member(MANIFEST, size_of(path), lambda: file_chunks(path))
    return _pack(manifest, media, path.parent, f"{path.stem}.tar")


def _local_media(lines: Iterable[bytes]) -> list[str]:
    """The paths that a manifest's lines name, each once. What is broken is left for the gateway to report."""
    found: dict[str, dict[str, None]] = {field: {} for field in _MEDIA_FIELDS}
    for line in lines:
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for field in _MEDIA_FIELDS if isinstance(item, dict) else ():
            reference = item.get(field)
            if isinstance(reference, str) and reference and not _REMOTE.match(reference):
                found[field][reference] = None
    return list(dict.fromkeys(chain.from_iterable(found.values())))


def _pack(manifest: _Member, media: Sequence[str], folder: Path, filename: str) -> Upload:
    """A tar of the manifest and those of its media that exist; the gateway reports the others, item by item."""
    paths = {name: _inside(folder, name) for name in media}
    there = {name: path for name, path in paths.items() if path.is_file()}
    if not there:
        raise ClientError(
            f"None of the {len(media)} media files that the manifest names is there; "
            f"the first is {folder / media[0]}. Paths are relative to the manifest's folder.",
            code="missing_media",
        )
    return _tar(filename, [manifest, *(_file_member(name, path) for name, path in there.items())])


def _pack_folder(folder: Path) -> Upload:
    """A tar of a folder in which files of one stem are one item (WebDataset naming)."""
    names = sorted(
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, files in os.walk(folder)
        for name in files
        if not any(part.startswith(".") for part in (Path(place) / name).relative_to(folder).parts)
    )
    if not names:
        raise ClientError(f"The folder {folder} is empty.", code="empty_manifest")
    return _tar(f"{folder.resolve().name}.tar", [_file_member(name, _inside(folder, name)) for name in names])


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`. Raises ClientError (`unsafe_path`) if it is elsewhere, through a link too."""
    path = folder / name
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ClientError(
            f"{name} is outside the folder {folder}; media must be below the manifest's folder.", code="unsafe_path"
        )
    return path


def _file_member(name: str, path: Path) -> _Member:
    return _Member(name, size_of(path), lambda: file_chunks(path))


def _tar(filename: str, members: Sequence[_Member]) -> Upload:
    length = sum(len(member.header) + member.size + len(member.padding) for member in members)
    end = bytes(2 * tarfile.BLOCKSIZE)
    end += bytes(-(length + len(end)) % tarfile.RECORDSIZE)

    def chunks() -> Iterator[bytes]:
        for member in members:
            yield member.header
            yield from _exactly(member)
            yield member.padding
        yield end

    return Upload(filename, length + len(end), chunks)


def _exactly(member: _Member) -> Iterator[bytes]:
    """A member's bytes. Raises ClientError (`changed_file`) unless there are as many as its header says."""
    left = member.size
    for chunk in member.chunks():
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise ClientError(f"{member.name} was changed while it was uploaded.", code="changed_file")
