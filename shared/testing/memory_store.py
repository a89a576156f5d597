"""An object store in memory, with the interface of `shared.storage.objects.ObjectStore`."""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from shared.errors import NotFoundError, TooLargeError
from shared.jobs.records import StoredObject
from shared.storage.objects import ListedObject, ObjectStore, Readable


class MemoryStore(ObjectStore):
    """Keeps objects in a dictionary: (bucket, key) → bytes. Tests may look into `objects` and change `modified`."""

    def __init__(self, bucket: str = "memory"):
        self.bucket = bucket
        self.objects: dict[tuple[str, str], bytes] = {}
        self.modified: dict[tuple[str, str], datetime] = {}

    def ensure_bucket(self) -> None:
        """Nothing to make."""

    def put(
        self,
        key: str,
        data: bytes,
        content_type: str = "application/octet-stream",  # noqa: ARG002
        bucket: str | None = None,
    ) -> StoredObject:
        """Writes `data` whole; into another bucket too, which the real store does not offer."""
        place = (bucket or self.bucket, key)
        self.objects[place], self.modified[place] = data, datetime.now(UTC)
        return StoredObject(key, hashlib.sha256(data).hexdigest(), len(data))

    def put_stream(
        self,
        key: str,
        stream: Readable,
        content_type: str = "application/octet-stream",
        limit: int | None = None,
    ) -> StoredObject:
        """Reads to the end first, as storage shows an object only once it is whole."""
        data = bytearray()
        while chunk := stream.read(1024**2):
            data += chunk
            if limit is not None and len(data) > limit:
                raise TooLargeError(f"The file is larger than the {limit} bytes allowed.", code="file_too_large")
        return self.put(key, bytes(data), content_type)

    def get(self, key: str, *, offset: int = 0, length: int | None = None, bucket: str | None = None) -> bytes:
        """The object, or `length` bytes of it from `offset`."""
        data = self._find(key, bucket)
        return data[offset:] if length is None else data[offset : offset + length]

    def stream(self, key: str, chunk_bytes: int = 1024**2, bucket: str | None = None) -> Iterator[bytes]:
        """The object in chunks."""
        data = self._find(key, bucket)
        return (data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))

    def size(self, key: str, bucket: str | None = None) -> int:
        """Bytes of the object."""
        return len(self._find(key, bucket))

    def copy(self, source: str, target: str) -> None:
        """Copies within the bucket."""
        self.put(target, self._find(source, None))

    def list(
        self, prefix: str, *, recursive: bool = True, bucket: str | None = None, start_after: str | None = None
    ) -> Iterator[ListedObject]:
        """The objects under a prefix and behind `start_after`, in the order of their keys."""
        found: dict[str, ListedObject] = {}
        for owner, key in sorted(self.objects):
            if owner != (bucket or self.bucket) or not key.startswith(prefix) or key <= (start_after or ""):
                continue
            folder, slash, _ = key[len(prefix) :].partition("/")
            shown = key if recursive or not slash else prefix + folder + slash
            data = self.objects[owner, key]
            found.setdefault(shown, ListedObject(shown, len(data), self.modified[owner, key]))
        return iter(found.values())

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; those that are gone already are no error."""
        for key in list(keys):
            self.objects.pop((self.bucket, key), None)
            self.modified.pop((self.bucket, key), None)

    def presign(self, key: str, expires: timedelta = timedelta(hours=1)) -> str:
        """A link that leads nowhere."""
        return f"memory://{self.bucket}/{key}?expires={int(expires.total_seconds())}"

    def _find(self, key: str, bucket: str | None) -> bytes:
        data = self.objects.get((bucket or self.bucket, key))
        if data is None:
            raise NotFoundError(f"There is no object {key!r}.", code="object_not_found")
        return data
