"""What can be uploaded: bytes of known size that can be read again from the start, so that an upload can be retried."""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.client.errors import ClientError

_CHUNK_BYTES = 256 * 1024

Chunks = Callable[[], Iterator[bytes]]
#: Told how many bytes of an upload or download have passed, and of how many (None: not known).
OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Upload:
    """A file as the gateway will know it. `chunks` yields its `size` bytes, from the start each time it is called."""

    filename: str
    size: int
    chunks: Chunks
    purpose: str = "user_data"
    on_bytes: OnBytes | None = None

    def open(self) -> "Body":
        """A stream over the bytes, read once."""
        return Body(self)

    def watched_by(self, on_bytes: OnBytes | None) -> "Upload":
        """The same upload, telling how far it is."""
        return replace(self, on_bytes=on_bytes)


class Body:
    """The part of a binary file's interface that httpx uses: `read`, and `seek` and `tell` to learn the size."""

    def __init__(self, upload: Upload):
        self._upload = upload
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """To the start, or to the end. Raises io.UnsupportedOperation for anywhere else."""
        if offset or whence not in {os.SEEK_SET, os.SEEK_END}:
            raise io.UnsupportedOperation("an upload is read from its start to its end")
        self._chunks = self._upload.chunks() if whence == os.SEEK_SET else iter(())
        self._position = 0 if whence == os.SEEK_SET else self._upload.size
        return self._position

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def read(self, _size: int = -1) -> bytes:
        """The next chunk, whatever its length; empty at the end."""
        chunk = next((chunk for chunk in self._chunks if chunk), b"")
        self._position += len(chunk)
        if self._upload.on_bytes is not None:
            self._upload.on_bytes(self._position, self._upload.size)
        return chunk


def file_upload(path: Path) -> Upload:
    """The file at `path` as it is. Raises ClientError (`unreadable_file`)."""
    return Upload(path.name, size_of(path), lambda: file_chunks(path))


def bytes_upload(filename: str, content: bytes) -> Upload:
    """Bytes in memory."""
    return Upload(filename, len(content), lambda: iter([content]))


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of the file at `path`. Raises ClientError (`unreadable_file`)."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error


def size_of(path: Path) -> int:
    """The size of the regular file at `path` in bytes. Raises ClientError (`unreadable_file`)."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if not path.is_file():
        raise ClientError(f"{path} is not a file.", code="unreadable_file")
    return size


def _unreadable(path: Path, error: OSError) -> ClientError:
    return ClientError(f"{path} cannot be read: {error.strerror}.", code="unreadable_file")
