"""Gzipped manifests and archives: unpacked to an object of their own, since gzip cannot be read by ranges."""

import gzip
import zlib
from collections.abc import Iterator

from services.dispatcher.manifests.ranged import ChunkReader, GuardedFile, RangedObject
from services.dispatcher.manifests.reading import Reading, corrupt
from shared.storage import keys

CHUNK_BYTES = 1024**2


def unpack_gzip(reading: Reading, key: str) -> str:
    """Unpacks an object and returns the key of the copy. Raises JobError: `corrupt_archive`, `archive_too_large`."""
    target = keys.unpacked(reading.job_id, reading.token)
    reading.store.put_stream(target, ChunkReader(_unpacked(reading, key)))
    return target


def _unpacked(reading: Reading, key: str) -> Iterator[bytes]:
    raw = RangedObject(reading.store, key, reading.store.size(key))
    done = 0
    try:
        with GuardedFile(raw, CHUNK_BYTES) as file, gzip.GzipFile(fileobj=file) as unpacked:
            while chunk := unpacked.read(CHUNK_BYTES):
                reading.check()
                done += len(chunk)
                reading.check_unpacked(done, raw.size)
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise corrupt(error) from error
