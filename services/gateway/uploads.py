"""Uploads: a multipart body read as it arrives, straight into object storage; never whole in memory or on disk."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from services.gateway.admission import check_space
from services.gateway.deps import Services
from services.gateway.media_types import HEAD_BYTES, sniff
from shared import schemas
from shared.errors import InvalidRequestError
from shared.ids import new_id
from shared.jobs.files import add_file
from shared.observability import get_logger
from shared.storage import keys
from shared.storage.objects import ObjectStore

log = get_logger(__name__)

#: The fields beside the file are short.
_FIELD_BYTES, _FIELD_COUNT = 4096, 16

PURPOSE = "[a-z0-9_-]{1,64}"
#: Control characters, line ends, what turns the direction of writing (`gpj.exe` seen as `exe.jpg`), halves of pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def store_upload(
    services: Services, tenant: str, content_type: str | None, next_chunk: Callable[[], bytes]
) -> schemas.File:
    """Reads a multipart body (`next_chunk` gives b"" at its end) and stores its file, once per content.

    Raises InvalidRequestError, TooLargeError (`file_too_large`), StorageFullError; nothing is left behind then.
    """
    check_space(services.settings)
    form = MultipartFile(content_type, next_chunk)
    head = form.peek(HEAD_BYTES)
    kind = sniff(head)
    key = keys.blob(tenant, new_id("upload"))
    stored = services.store.put_stream(key, form, kind, services.settings.limits.upload_bytes)  # type: ignore[arg-type]  # read() is all it needs
    kept = None
    try:
        form.finish()
        if not stored.bytes:
            raise InvalidRequestError("The file is empty.", code="empty_file", param="file")
        with services.sessions.begin() as session:
            file, kept = add_file(
                session, tenant=tenant, stored=stored, content_type=kind, filename=form.filename, purpose=form.purpose
            )  # fmt: skip
        return file
    finally:
        if kept != key:
            discard(services.store, key)


def discard(store: ObjectStore, key: str) -> None:
    """Deletes an object that no row names any more, if that can be done just now."""
    try:
        store.delete([key])
    except Exception as error:  # noqa: BLE001  # no row names the object: the sweep removes what stays behind
        log.warning("object not deleted", key=key, error=str(error))


class MultipartFile:
    """The one file of a multipart body (RFC 7578), as a stream, and the fields around it.

    `peek`, then `read` to the end, then `finish`, which reads what comes behind the file.
    """

    def __init__(self, content_type: str | None, next_chunk: Callable[[], bytes]):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidRequestError("Send the file as multipart/form-data, in a part named `file`.", param="file")
        self.filename = ""
        self._next_chunk = next_chunk
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._fields: dict[str, bytearray] = {}
        self._field: bytearray | None = None
        self._buffer = bytearray()
        self._file: Literal["awaited", "open", "ended"] = "awaited"
        self._form_ended = False
        try:
            self._parser = MultipartParser(options[b"boundary"], {
                "on_part_begin": self._headers.clear, "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_field, "on_header_value": self._on_header_value,
                "on_headers_finished": self._on_headers, "on_part_data": self._on_data,
                "on_part_end": self._on_part_end, "on_end": self._on_end,
            })  # fmt: skip
        except FormParserError as error:
            raise _malformed(error) from error

    @property
    def purpose(self) -> str:
        """What the file is for, known after `finish`: a word to filter lists by. Raises InvalidRequestError."""
        word = bytes(self._fields.get("purpose", b"user_data")).decode(errors="replace")
        if not re.fullmatch(PURPOSE, word):
            raise InvalidRequestError("A purpose is a word of small letters, digits, - and _.", param="purpose")
        return word

    def peek(self, size: int) -> bytes:
        """The first bytes of the file, up to `size`, without consuming them. Raises InvalidRequestError."""
        while self._file != "ended" and len(self._buffer) < size:
            if self._form_ended:
                raise InvalidRequestError("There is no part named `file` in the form.", param="file")
            self._advance()
        return bytes(self._buffer[:size])

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the file, fewer only at its end. Raises InvalidRequestError."""
        chunk = self.peek(size)
        del self._buffer[:size]
        return chunk

    def finish(self) -> None:
        """Reads the rest of the body. Raises InvalidRequestError."""
        while not self._form_ended:
            self._advance()

    def _advance(self) -> None:
        chunk = self._next_chunk()
        if not chunk:
            raise InvalidRequestError("The multipart body breaks off in the middle.", code="invalid_multipart")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error

    def _on_header_begin(self) -> None:
        self._headers.append((bytearray(), bytearray()))

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][1].extend(data[start:end])

    def _on_headers(self) -> None:
        headers = {bytes(name).lower(): bytes(value) for name, value in self._headers}
        _, options = parse_options_header(headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode(errors="replace")
        if name == "file":
            if self._file != "awaited":
                raise InvalidRequestError("Send one file at a time.", param="file")
            self._file = "open"
            self.filename = clean_filename(options.get(b"filename", b"").decode(errors="replace"))
        elif name == "purpose" and name in self._fields:
            raise InvalidRequestError("Send one purpose.", param="purpose")
        elif name.startswith("expires_after"):
            message = "Files are kept as long as the platform keeps them all; leave expires_after out."
            raise InvalidRequestError(message, param="expires_after")
        elif len(self._fields) < _FIELD_COUNT:
            self._field = self._fields.setdefault(name, bytearray())
        else:
            raise InvalidRequestError("The form has too many fields.", code="invalid_multipart")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file == "open":
            self._buffer.extend(data[start:end])
        elif self._field is not None:
            self._field.extend(data[start:end])
            if len(self._field) > _FIELD_BYTES:
                raise InvalidRequestError("A field of the form is too long.", code="invalid_multipart")

    def _on_part_end(self) -> None:
        if self._file == "open":
            self._file = "ended"
        self._field = None

    def _on_end(self) -> None:
        self._form_ended = True


def clean_filename(name: str) -> str:
    """A name without folders and control characters, of 255 characters at most."""
    last = Path(name.replace("\\", "/")).name
    clean = _UNPRINTABLE.sub("", last).strip()[:255]
    return clean if clean.strip(".") else "file"


def _malformed(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart body is malformed: {error}.", code="invalid_multipart")
