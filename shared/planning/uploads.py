"""Writing the objects of a plan while the manifest is still being read."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Self
from uuid import UUID

from shared.items import MediaLocation, PlannedItem
from shared.jobs.records import Slice, StoredObject
from shared.queues import Modality
from shared.storage import keys
from shared.storage.objects import ObjectStore

#: Uploads under way at the same time.
IN_FLIGHT = 4

#: Objects in the making are kept in memory up to this size, on disk above.
SPOOL_BYTES = 4 * 1024**2

#: Media from inside a manifest are gathered in objects of about this size.
PACK_BYTES = 64 * 1024**2


class Uploads:
    """A few uploads at a time; `submit` waits while too many are under way. As a context, waits for all of them."""

    def __init__(self, store: ObjectStore):
        self._store = store
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="upload")
        self._running: deque[Future[StoredObject]] = deque()
        self._open: set[IO[bytes]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        for content in self._open:
            content.close()

    def new(self) -> IO[bytes]:
        """An empty file for an object in the making."""
        content = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  # closed by the upload, or at the end
        self._open.add(content)
        return content

    def submit(self, key: str, content: IO[bytes], content_type: str) -> "Future[StoredObject]":
        """Uploads and closes what `new` gave. Raises what an earlier upload raised."""
        while len(self._running) >= IN_FLIGHT:
            self._running.popleft().result()
        future = self._threads.submit(self._upload, key, content, content_type)
        self._running.append(future)
        return future

    def _upload(self, key: str, content: IO[bytes], content_type: str) -> StoredObject:
        with content:
            content.seek(0)
            stored = self._store.put_stream(key, content, content_type)
        self._open.discard(content)
        return stored


class SliceWriter:
    """Writes planned items, in order, to one object per slice of the job. Empty slices are left out."""

    def __init__(self, uploads: Uploads, job_id: str, token: UUID, shard_size: int):
        self._uploads, self._job_id, self._token, self._shard_size = uploads, job_id, token, shard_size
        self._lines = uploads.new()
        self._index = self._items = 0
        self._modalities = dict.fromkeys(Modality, 0)
        self._written: list[tuple[int, int, dict[Modality, int], Future[StoredObject]]] = []

    def write(self, item: PlannedItem) -> None:
        """Adds the next item."""
        index = item.index // self._shard_size
        if index != self._index:
            self._end_slice()
            self._index = index
        self._lines.write(item.model_dump_json(exclude_none=True).encode() + b"\n")
        self._items += 1
        for modality in self._modalities:
            self._modalities[modality] += getattr(item, modality) is not None

    def finish(self) -> list[Slice]:
        """Waits until everything is written."""
        self._end_slice()
        self._lines.close()
        return [Slice(index, future.result(), items, counts) for index, items, counts, future in self._written]

    def _end_slice(self) -> None:
        if self._items:
            key = keys.item_slice(self._job_id, self._index, self._token)
            future = self._uploads.submit(key, self._lines, "application/x-ndjson")
            self._written.append((self._index, self._items, self._modalities, future))
            self._lines, self._items, self._modalities = self._uploads.new(), 0, dict.fromkeys(Modality, 0)


class MediaPacker:
    """Gathers pictures and sounds that came inside a manifest into objects of which workers read ranges."""

    def __init__(self, uploads: Uploads, job_id: str, token: UUID):
        self._uploads, self._job_id, self._token = uploads, job_id, token
        self._pack, self._packs, self._offset = uploads.new(), 0, 0
        self._written: list[Future[StoredObject]] = []

    def add(self, data: bytes, ref: str) -> MediaLocation:
        """Where `data` will be once `finish` has returned."""
        if self._offset and self._offset + len(data) > PACK_BYTES:
            self._end_pack()
        key = keys.media_pack(self._job_id, self._packs, self._token)
        location = MediaLocation(
            key=key, offset=self._offset, size=len(data), sha256=sha256(data).hexdigest(), ref=ref
        )  # fmt: skip
        self._offset += self._pack.write(data)
        return location

    def finish(self) -> None:
        """Waits until everything is written."""
        if self._offset:
            self._end_pack()
        self._pack.close()
        for future in self._written:
            future.result()

    def _end_pack(self) -> None:
        key = keys.media_pack(self._job_id, self._packs, self._token)
        self._written.append(self._uploads.submit(key, self._pack, "application/octet-stream"))
        self._pack, self._packs, self._offset = self._uploads.new(), self._packs + 1, 0
