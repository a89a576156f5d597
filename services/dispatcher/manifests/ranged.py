"""An object of storage as a file, read in blocks by range, so that a reader can be slow, jump about, take its time."""

import errno
import io
from collections import OrderedDict
from collections.abc import Iterator

from services.dispatcher.manifests.reading import corrupt
from shared.storage.objects import ObjectStore

#: One request reads this much; so many blocks are kept, for readers that jump about.
BLOCK_BYTES = 4 * 1024**2
BLOCKS_KEPT = 4


class RangedObject(io.RawIOBase):
    """A seekable binary file over `size` bytes of an object, from `start` on. Raises what the store raises."""

    def __init__(self, store: ObjectStore, key: str, size: int, *, bucket: str | None = None, start: int = 0):
        super().__init__()
        self._store, self._key, self._bucket, self._start, self.size = store, key, bucket, start, size
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "negative position")  # as files do
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what io.BufferedReader passes
        """Reads up to the end of the current block."""
        number, start = divmod(self._position, BLOCK_BYTES)
        if self._position >= self.size:
            return 0
        piece = memoryview(self._block(number))[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            offset = number * BLOCK_BYTES
            length = min(BLOCK_BYTES, self.size - offset)
            block = self._store.get(self._key, offset=self._start + offset, length=length, bucket=self._bucket)
            if len(self._blocks) == BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks[number] = block
        return block


class GuardedFile(io.BufferedReader):
    """A buffered file for libraries that trust the lengths in what they parse: no single read may be larger than
    `largest` bytes, as none of a sound archive's headers are. Raises JobError (`corrupt_archive`) then."""

    def __init__(self, raw: RangedObject, largest: int):
        super().__init__(raw, 1024**2)
        self._size, self._largest = raw.size, largest

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._size - self.tell() if size is None or size < 0 else size
        if wanted > self._largest:
            raise corrupt("one of its headers is too long")
        return super().read(wanted)


class ChunkReader:
    """A stream over chunks as they come, for `ObjectStore.put_stream`."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes, fewer at the end only: whoever reads has as few pieces as possible to join."""
        if size < 0:
            raise ValueError("a stream of chunks is read piece by piece")
        pieces, missing = [self._rest], size - len(self._rest)
        while missing > 0 and (chunk := next(self._chunks, None)) is not None:
            pieces.append(chunk)
            missing -= len(chunk)
        data = b"".join(pieces)
        self._rest = data[size:]
        return data[:size]
