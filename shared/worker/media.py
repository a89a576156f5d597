"""Reading the bytes of pictures and sounds: members of one archive that lie close together come with one request."""

import base64
import binascii
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from shared.errors import ItemError, NotFoundError
from shared.items import MediaLocation
from shared.storage.fetching import UrlFetcher
from shared.storage.objects import ObjectStore

#: Ranges closer than this are read together, up to RUN_BYTES at once.
GAP_BYTES = 128 * 1024
RUN_BYTES = 8 * 1024**2

#: Requests under way at once.
PARALLEL = 8

Fetched = dict[int, bytes | ItemError]


def fetch_media(
    store: ObjectStore, fetcher: UrlFetcher, locations: Mapping[int, MediaLocation], max_bytes: int
) -> Fetched:
    """The bytes of each location, or the ItemError that says why not. Raises UnavailableError in an outage."""
    found: Fetched = {}
    ranges: dict[tuple[str | None, str], list[tuple[int, int, int]]] = defaultdict(list)
    whole: dict[int, MediaLocation] = {}
    urls: dict[int, str] = {}
    for index, location in locations.items():
        if location.size is not None and location.size > max_bytes:
            found[index] = ItemError(
                f"{location.ref or 'The media'} has {location.size} bytes; {max_bytes} are allowed.",
                code="media_too_large",
            )
        elif location.data is not None:
            found[index] = _decoded(location.data)
        elif location.url is not None:
            urls[index] = location.url
        elif location.key is not None and location.size is not None:
            ranges[location.bucket, location.key].append((location.offset, location.size, index))
        else:
            whole[index] = location
    runs = [(source, run) for source, members in ranges.items() for run in _runs(sorted(members))]
    with ThreadPoolExecutor(PARALLEL) as pool:
        for part in pool.map(lambda args: _read_run(store, *args), runs):
            found.update(part)
        found.update(
            zip(whole, pool.map(lambda place: _read_whole(store, place, max_bytes), whole.values()), strict=True)
        )
        found.update(zip(urls, pool.map(lambda url: _fetch(fetcher, url), urls.values()), strict=True))
    return {index: _checked(data, locations[index]) for index, data in found.items()}


def _runs(members: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    run: list[tuple[int, int, int]] = []
    for offset, size, index in members:
        if run:
            start, end = run[0][0], run[-1][0] + run[-1][1]
            if offset - end > GAP_BYTES or offset + size - start > RUN_BYTES:
                yield run
                run = []
        run.append((offset, size, index))
    if run:
        yield run


def _read_run(store: ObjectStore, source: tuple[str | None, str], run: list[tuple[int, int, int]]) -> Fetched:
    bucket, key = source
    start, end = run[0][0], max(offset + size for offset, size, _ in run)
    if end == start:
        return {index: b"" for _, _, index in run}
    try:
        data = store.get(key, offset=start, length=end - start, bucket=bucket)
    except NotFoundError:
        return {index: _missing(key) for _, _, index in run}
    return {index: data[offset - start : offset - start + size] for offset, size, index in run}


def _read_whole(store: ObjectStore, location: MediaLocation, max_bytes: int) -> bytes | ItemError:
    if location.key is None:
        return _missing(location.ref)
    try:
        data = store.get(location.key, length=max_bytes + 1, bucket=location.bucket)
    except NotFoundError:
        return _missing(location.ref or location.key)
    if len(data) > max_bytes:
        return ItemError(f"{location.ref} has more than the {max_bytes} bytes allowed.", code="media_too_large")
    return data


def _fetch(fetcher: UrlFetcher, url: str) -> bytes | ItemError:
    try:
        return fetcher.fetch(url)
    except ItemError as error:
        return error


def _decoded(data: str) -> bytes | ItemError:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return ItemError("The data: URI is not valid base64.", code="corrupt_media")


def _checked(data: bytes | ItemError, location: MediaLocation) -> bytes | ItemError:
    if isinstance(data, bytes) and location.sha256 and hashlib.sha256(data).hexdigest() != location.sha256:
        message = f"{location.ref or 'The media'} changed after the job was planned."
        return ItemError(message, code="changed_media")
    return data


def _missing(name: str) -> ItemError:
    return ItemError(f"{name or 'The media'} is not in storage.", code="missing_media")
