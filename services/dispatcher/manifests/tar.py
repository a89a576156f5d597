"""Tar archives: read through once, so that workers can read any member by its range."""

import struct
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from typing import BinaryIO

from services.dispatcher.manifests.members import TEXTUAL, Member, MemberIndex, member_name, role_of
from services.dispatcher.manifests.ranged import GuardedFile, RangedObject
from services.dispatcher.manifests.reading import Reading, corrupt
from shared.errors import JobError
from shared.items import MediaLocation

CHUNK_BYTES = 1024**2

#: What tarfile raises when headers make no sense.
_PARSER_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, struct.error)

#: A name in an extended header may be long, but not without end.
LARGEST_HEADER = 4 * CHUNK_BYTES


def index_tar(reading: Reading, key: str) -> MemberIndex:
    """The members of a tar (ustar, GNU or pax, not compressed) with place and hash, in bounded memory.

    Raises JobError: `corrupt_archive`, `unsafe_archive` (links, devices, names that lead out), `archive_too_large`.
    """
    index = MemberIndex()
    raw = RangedObject(reading.store, key, reading.store.size(key))
    with GuardedFile(raw, LARGEST_HEADER) as file:
        for count, info in enumerate(_headers(file, raw.size), 1):
            reading.check_members(count)
            name = member_name(info.name)
            if not info.isdir():
                index.add(_hashed(file, info, name, key, reading.limits.text_bytes))
    return index


def _headers(file: GuardedFile, size: int) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="replace") as archive:
            end = 0
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it would remember every member
                if archive.offset <= end or info.size < 0:
                    raise corrupt("a header leads backwards")
                end = archive.offset
                if not (info.isdir() or (info.isreg() and not info.issparse())):
                    message = f"The archive has a member that is no plain file: {info.name[:200]!r}."
                    raise JobError(message, code="unsafe_archive")
                yield info
    except _PARSER_ERRORS as error:
        raise corrupt(error) from error
    # tarfile takes a broken header for the end; the real end is two blocks of zeros, or that of the file.
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)) or end > size:
        raise corrupt(f"there is no sound header at byte {end}")


def _hashed(file: BinaryIO, info: tarfile.TarInfo, name: str, key: str, text_bytes: int) -> Member:
    digest, role = sha256(), role_of(name)
    keep = role in TEXTUAL and info.size <= text_bytes
    content = bytearray()
    file.seek(info.offset_data)
    left = info.size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise corrupt(f"it ends within {info.name[:200]!r}")
        digest.update(chunk)
        left -= len(chunk)
        if keep:
            content += chunk
    location = MediaLocation(key=key, offset=info.offset_data, size=info.size, sha256=digest.hexdigest(), ref=name)
    return Member(name, role, location, bytes(content) if keep else None)
