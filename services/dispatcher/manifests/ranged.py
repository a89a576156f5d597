"""An object of storage as a file: read in blocks by range, so that a reader can be slow, jump about and take its time."""

import io
from collections import OrderedDict
from collections.abc import Callable

from shared.errors import JobError
from shared.storage.objects import ObjectStore

#: One request reads this much; so many blocks are kept, for readers that jump about.
BLOCK_BYTES = 4 * 1024**2
BLOCKS_KEPT = 4


class RangedObject(io.RawIOBase):
    """A seekable binary file over one object. Raises UnavailableError and NotFoundError as the store does."""

    def __init__(self, store: ObjectStore, key: str, size: int, bucket: str | None = None):
        super().__init__()
        self._store, self._key, self._bucket, self.size = store, key, bucket, size
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
            raise ValueError("negative position")
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
            block = self._store.get(self._key, offset=offset, length=length, bucket=self._bucket)
            if len(self._blocks) == BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks[number] = block
        return block


class GuardedFile(io.BufferedReader):
    """A buffered file for libraries that trust the lengths in what they parse: no single read may be larger than
    `largest` bytes (JobError `corrupt_archive`), as none of a sound archive's headers are."""

    def __init__(self, raw: io.RawIOBase, largest: int, refused: Callable[[], JobError]):
        super().__init__(raw, 1024**2)
        self._largest, self._refused = largest, refused

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._largest:
            raise self._refused()
        return super().read(size)
