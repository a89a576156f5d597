"""Zip archives: repacked as a tar, since workers read ranges and a zip's members are compressed."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from hashlib import sha256

from services.dispatcher.manifests.members import TEXTUAL, Member, MemberIndex, member_name, role_of
from services.dispatcher.manifests.ranged import ChunkReader, GuardedFile, RangedObject
from services.dispatcher.manifests.reading import Reading, corrupt
from shared.errors import JobError
from shared.items import MediaLocation
from shared.storage import keys

CHUNK_BYTES = 1024**2

#: The directory of a zip is read whole; at about 100 bytes a member this is half a million of them.
LARGEST_DIRECTORY = 48 * CHUNK_BYTES

_PARSER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, LookupError)


def index_zip(reading: Reading, key: str) -> MemberIndex:
    """Repacks a zip as a tar and returns its members, placed in that tar.

    Raises JobError: `corrupt_archive`, `archive_too_large`, `unsafe_archive` (links, names that lead out),
    `unsupported_manifest` (encrypted, or a compression that is not deflate, bzip2 or LZMA).
    """
    index = MemberIndex()
    raw = RangedObject(reading.store, key, reading.store.size(key))
    with GuardedFile(raw, LARGEST_DIRECTORY) as file:
        chunks = _Repacking(reading, file, raw.size, index).chunks()
        reading.store.put_stream(keys.repacked(reading.job_id, reading.token), ChunkReader(chunks), "application/x-tar")
    return index


class _Repacking:
    """A zip on its way into a tar. Members are indexed as they pass."""

    def __init__(self, reading: Reading, file: GuardedFile, size: int, index: MemberIndex):
        self._reading, self._file, self._size, self._index = reading, file, size, index
        self._key = keys.repacked(reading.job_id, reading.token)
        self._written = 0
        self._unpacked = 0

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the tar."""
        try:
            with zipfile.ZipFile(self._file) as archive:
                for count, info in enumerate(archive.infolist(), 1):
                    self._reading.check_members(count)
                    name = _checked(info)
                    if not info.is_dir():
                        for chunk in self._member(archive, info, name):
                            self._written += len(chunk)
                            yield chunk
        except NotImplementedError as error:
            raise JobError(f"The zip cannot be unpacked: {error}.", code="unsupported_manifest") from error
        except _PARSER_ERRORS as error:
            raise corrupt(error) from error
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
        entry = tarfile.TarInfo(name)
        entry.size = info.file_size
        header = entry.tobuf(tarfile.PAX_FORMAT)
        offset = self._written + len(header)
        yield header
        digest, role = sha256(), role_of(name)
        keep = role in TEXTUAL and info.file_size <= self._reading.limits.text_bytes
        content, done = bytearray(), 0
        with archive.open(info) as member:
            while chunk := member.read(CHUNK_BYTES):
                done += len(chunk)
                self._unpacked += len(chunk)
                self._reading.check_unpacked(self._unpacked, self._size)
                digest.update(chunk)
                if keep:
                    content += chunk
                yield chunk
        if done != info.file_size:
            raise corrupt(f"{name[:200]!r} is not as long as the directory says")
        yield bytes(-done % tarfile.BLOCKSIZE)
        location = MediaLocation(key=self._key, offset=offset, size=done, sha256=digest.hexdigest(), ref=name)
        self._index.add(Member(name, role, location, bytes(content) if keep else None))


def _checked(info: zipfile.ZipInfo) -> str:
    """The name of a member that may be unpacked."""
    if info.flag_bits & 0x1:
        raise JobError("The zip is encrypted; send it without a password.", code="unsupported_manifest")
    mode = info.external_attr >> 16  # of Unix; 0 when packed elsewhere
    if mode and stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        message = f"The archive has a member that is no plain file: {info.filename[:200]!r}."
        raise JobError(message, code="unsafe_archive")
    return member_name(info.filename.replace("\\", "/"))
