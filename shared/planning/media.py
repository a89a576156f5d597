"""Finding the pictures and sounds that rows name: uploaded files, `data:` URIs, members beside the manifest, URLs."""

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Protocol
from urllib.parse import unquote_to_bytes

from shared.errors import ItemError
from shared.items import MediaLocation
from shared.settings import Fetching
from shared.storage.urls import is_url, parse_url

#: Finds many at once: what is not in the answer does not exist, or not for this tenant.
Finder = Callable[[Collection[str]], Mapping[str, MediaLocation]]

#: Media that came inside the manifest travel inside the slice up to this size, so that small ones cost no request.
INLINE_BYTES = 4096

_FILE_ID = re.compile(r"file-[0-9a-hjkmnp-tv-z]{26}")
_DATA_URI = re.compile(r"data:(?P<type>[^,;]*)(?:;(?!base64,)[^,;]*)*(?P<base64>;base64)?,", re.IGNORECASE)


def is_data_uri(reference: str) -> bool:
    """True for media that are in the reference itself."""
    return reference[:5].lower() == "data:"


class Packer(Protocol):
    """Takes media that came inside a manifest to where workers find them."""

    def add(self, data: bytes, ref: str) -> MediaLocation:
        """Where the bytes will be."""
        ...


class MediaResolver:
    """Locates the media of a batch of items, each file or member asked for once."""

    def __init__(
        self, packer: Packer, media_bytes: int, fetching: Fetching, resolve_files: Finder, find_members: Finder
    ):
        self._packer, self._media_bytes, self._fetching = packer, media_bytes, fetching
        self._resolve_files, self._find_members = resolve_files, find_members
        self._known: Mapping[str, MediaLocation] = {}

    def look_up(self, references: Collection[str]) -> None:
        """Asks for what the next calls of `locate` will want."""
        files = {reference for reference in references if _FILE_ID.fullmatch(reference)}
        members = {reference for reference in references if reference not in files and not is_data_uri(reference)}
        found = dict(self._find_members(members)) if members else {}
        if files:
            found.update(self._resolve_files(files))
        self._known = found

    def locate(self, reference: str, known: bytes | MediaLocation | None = None) -> MediaLocation:
        """Where the bytes are; `known` if the reader of the manifest had them.

        Raises ItemError: `missing_media`, `media_too_large`, `corrupt_media` (a `data:` URI that cannot be decoded),
        `url_not_allowed`.
        """
        if isinstance(known, bytes):
            return self._enclosed(known, reference)
        if known is None and is_data_uri(reference):
            return self._enclosed(decode_data_uri(reference, self._media_bytes), reference[: reference.find(",")][:100])
        location = known or self._known.get(reference)
        if location is None and self._fetching.urls and is_url(reference):
            parse_url(reference, self._fetching)
            return MediaLocation(url=reference, ref=reference)
        if location is None:
            raise ItemError(_missing(reference), code="missing_media")
        self._check_size(location.size or 0)
        location.ref = reference
        return location

    def _enclosed(self, data: bytes, ref: str) -> MediaLocation:
        self._check_size(len(data))
        if len(data) > INLINE_BYTES:
            return self._packer.add(data, ref)
        return enclose(data, ref)

    def _check_size(self, size: int) -> None:
        if size > self._media_bytes:
            raise too_large(size, self._media_bytes)


def enclose(data: bytes, ref: str) -> MediaLocation:
    """A location that holds the bytes themselves."""
    encoded = base64.b64encode(data).decode()
    return MediaLocation(data=encoded, size=len(data), sha256=sha256(data).hexdigest(), ref=ref)


def decode_data_uri(uri: str, limit: int) -> bytes:
    """The bytes of a `data:` URI (RFC 2397), base64 or percent-encoded. Raises ItemError."""
    match = _DATA_URI.match(uri)
    if match is None:
        raise ItemError("This data: URI has no comma between its type and its data.", code="corrupt_media")
    body = uri[match.end() :]
    if not match["base64"]:
        return unquote_to_bytes(body)
    if len(body) // 4 * 3 > limit + 2:
        raise too_large(len(body) // 4 * 3, limit)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except binascii.Error as error:
        raise ItemError(f"The base64 of this data: URI cannot be decoded: {error}.", code="corrupt_media") from None


def too_large(size: int, limit: int) -> ItemError:
    """The error of a picture or sound over the limit."""
    return ItemError(f"It has {size} bytes; the limit is {limit}.", code="media_too_large")


def _missing(reference: str) -> str:
    shown = reference if len(reference) <= 200 else reference[:200] + "…"
    if _FILE_ID.fullmatch(reference):
        return f"There is no file {shown!r}."
    if is_url(reference):
        return f"{shown!r} is a URL, and URLs are not fetched: upload the file, or put it beside the manifest."
    return f"There is no member {shown!r} beside the manifest."
