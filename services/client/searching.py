"""What is searched by: local pictures and sounds become part of the request, or are uploaded if they are large."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from services.client import requests
from services.client.flows import Flow, call
from services.client.uploads import bytes_upload, file_chunks, size_of
from shared.queues import Modality
from shared.search import SearchFilter, SearchResults

#: A file, its bytes, a `file-…` id or a `data:` URI.
Media = str | Path | bytes

#: Larger ones are uploaded: a request may hold 1 MiB of a modality, in base64.
_INLINE_BYTES = 700 * 1024

_REMOTE = re.compile(r"file-[0-9a-z]{26}$|data:")


def search(
    index: str,
    *,
    text: str | None = None,
    image: Media | None = None,
    audio: Media | None = None,
    id: str | None = None,
    modality: Modality | str | None = None,
    limit: int = 10,
    filter: SearchFilter | Mapping[str, Any] | None = None,
    exact: bool = False,
    timeout_seconds: float | None = None,
) -> Flow[SearchResults]:
    """Finds the items of an index (a `job-…` id) that are nearest to a text, picture or sound, or to its item `id`.

    `modality` is what to find: pictures for a sound, say. `filter` has `label`, `split` and `metadata`. Nearly all of
    the nearest are found; all with `exact`, which compares with every item.
    """
    query: dict[str, Any] = {"id": id, "text": text}
    for name, media in (("image", image), ("audio", audio)):
        query[name] = None if media is None else (yield from _deliver(media, name))
    fields = {
        "index": index,
        "query": {name: value for name, value in query.items() if value is not None},
        "modality": modality,
        "limit": limit,
        "filter": filter,
        "exact": exact,
        "timeout_seconds": timeout_seconds,
    }
    body = to_jsonable_python({name: value for name, value in fields.items() if value is not None}, exclude_none=True)
    return (yield from call(requests.create_search(body)))


def _deliver(media: Media, name: str) -> Flow[str]:
    """A picture or sound as the gateway takes it."""
    if isinstance(media, str) and _REMOTE.match(media):
        return media
    if not isinstance(media, bytes):
        path = Path(media)
        size_of(path)  # or it is said what is wrong with it
        name, media = path.name, b"".join(file_chunks(path))
    if len(media) > _INLINE_BYTES:
        file = yield from call(requests.upload(bytes_upload(name, media)))
        return file.id
    return "data:;base64," + base64.b64encode(media).decode()
