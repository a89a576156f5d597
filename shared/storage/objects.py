"""Object storage: plain S3 through the `minio` client, so that MinIO, SeaweedFS, RustFS or AWS serve alike."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from shared.errors import NotFoundError, StorageFullError, TooLargeError, UnavailableError
from shared.jobs.records import StoredObject
from shared.settings import Settings

#: Part size of multipart uploads of unknown length.
PART_BYTES = 16 * 1024**2

_OUTAGES = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)

#: How storage says that its disk or our quota is full: MinIO with status 507 or a code of its own, Ceph with the last.
_FULL_STATUS, _FULL_CODES = 507, frozenset({"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"})


@dataclass(frozen=True)
class ListedObject:
    """An object as a listing shows it."""

    key: str
    bytes: int
    modified_at: datetime | None


class Readable(Protocol):
    """Anything that can be uploaded: `read` gives up to `size` bytes, none at the end."""

    def read(self, size: int = -1, /) -> bytes: ...


class ObjectStore:
    """One bucket. Every method raises UnavailableError when storage is away, NotFoundError when the object is; those
    that write raise StorageFullError when it has no room."""

    def __init__(self, client: Minio, bucket: str, public_client: Minio | None = None):
        self._client = client
        self._public = public_client or client
        self.bucket = bucket

    def ensure_bucket(self) -> None:
        """Makes the bucket if it is not there."""
        with _errors(self.bucket):
            try:
                if not self._client.bucket_exists(self.bucket):
                    self._client.make_bucket(self.bucket)
            except S3Error as error:
                if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> StoredObject:
        """Writes `data` whole."""
        with _errors(key):
            self._client.put_object(self.bucket, key, io.BytesIO(data), len(data), content_type)
        return StoredObject(key, hashlib.sha256(data).hexdigest(), len(data))

    def put_stream(
        self, key: str, stream: Readable, content_type: str = "application/octet-stream", limit: int | None = None
    ) -> StoredObject:
        """Writes a stream of unknown length in parts, hashing as it passes.

        Raises TooLargeError once `limit` bytes are exceeded; nothing is left behind then.
        """
        reader = _HashingReader(stream, limit)
        with _errors(key):
            # One part at a time: the client never ends the threads of parallel parts if the stream raises.
            self._client.put_object(
                self.bucket,
                key,
                reader,  # type: ignore[arg-type]  # read() is all it needs
                -1,
                content_type,
                part_size=PART_BYTES,
                num_parallel_uploads=1,
            )
        return StoredObject(key, reader.digest.hexdigest(), reader.bytes)

    def get(self, key: str, *, offset: int = 0, length: int | None = None, bucket: str | None = None) -> bytes:
        """The object, or `length` bytes of it from `offset`."""
        with _errors(key):
            response = self._client.get_object(bucket or self.bucket, key, offset=offset, length=length or 0)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def stream(self, key: str, chunk_bytes: int = 1024**2, bucket: str | None = None) -> Iterator[bytes]:
        """The object in chunks."""
        with _errors(key):
            response = self._client.get_object(bucket or self.bucket, key)
            try:
                yield from response.stream(chunk_bytes)
            finally:
                response.close()
                response.release_conn()

    def size(self, key: str, bucket: str | None = None) -> int:
        """Bytes of the object."""
        with _errors(key):
            return int(self._client.stat_object(bucket or self.bucket, key).size or 0)

    def copy(self, source: str, target: str) -> None:
        """A copy made by the server; objects over 5 GiB are copied through parts."""
        from minio.commonconfig import ComposeSource, CopySource

        with _errors(source):
            if self.size(source) < 5 * 1024**3:
                self._client.copy_object(self.bucket, target, CopySource(self.bucket, source))
            else:
                self._client.compose_object(self.bucket, target, [ComposeSource(self.bucket, source)])

    def list(
        self, prefix: str, *, recursive: bool = True, bucket: str | None = None, start_after: str | None = None
    ) -> Iterator[ListedObject]:
        """The objects under a prefix and behind `start_after`, in the order of their keys; folders too when not
        `recursive`."""
        with _errors(prefix):
            for found in self._client.list_objects(bucket or self.bucket, prefix, recursive, start_after):
                yield ListedObject(found.object_name or "", found.size or 0, found.last_modified)

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; those that are gone already are no error."""
        with _errors("objects"):
            for failure in self._client.remove_objects(self.bucket, (DeleteObject(key) for key in keys)):
                if failure.code != "NoSuchKey":
                    raise UnavailableError(f"An object could not be deleted: {failure.message}")

    def presign(self, key: str, expires: timedelta = timedelta(hours=1)) -> str:
        """A link that reads the object without credentials, as clients outside reach the storage."""
        return self._public.presigned_get_object(self.bucket, key, expires=expires)


def make_store(settings: Settings) -> ObjectStore:
    """The object store of this process. Makes no request."""
    client = _client(settings, settings.s3_endpoint)
    public = settings.s3_public_endpoint
    return ObjectStore(client, settings.s3_bucket, _client(settings, public) if public else None)


def _client(settings: Settings, endpoint: str) -> Minio:
    url = urlsplit(endpoint)
    return Minio(
        url.netloc,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=url.scheme == "https",
        region=settings.s3_region,
        http_client=urllib3.PoolManager(
            maxsize=16,
            timeout=urllib3.Timeout(connect=5, read=30),
            # The last answer is passed on, since it may say that storage is full.
            retries=urllib3.Retry(
                total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504], raise_on_status=False
            ),
        ),
    )


class _HashingReader:
    """Passes a stream on while hashing and counting it."""

    def __init__(self, stream: Readable, limit: int | None):
        self._stream, self._limit = stream, limit
        self.digest, self.bytes = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self.digest.update(chunk)
        self.bytes += len(chunk)
        if self._limit is not None and self.bytes > self._limit:
            raise TooLargeError(f"The file is larger than the {self._limit} bytes allowed.", code="file_too_large")
        return chunk


class _errors:  # noqa: N801  # reads as a statement: `with _errors(key):`
    """Turns the client's exceptions into ours."""

    def __init__(self, key: str):
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, S3Error) and error.code in {"NoSuchKey", "NoSuchBucket", "NoSuchObject"}:
            raise NotFoundError(f"There is no object {self._key!r}.", code="object_not_found") from error
        if isinstance(error, S3Error) and (error.code in _FULL_CODES or error.response.status == _FULL_STATUS):
            raise StorageFullError("Object storage has no room for more.") from error
        if isinstance(error, (*_OUTAGES, MinioException)):
            raise UnavailableError(f"Object storage cannot be used just now: {error}", retry_after=5) from error
