"""Multipart bodies, cut into chunks anywhere, and the names and types of what is in them."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.media_types import sniff
from services.gateway.uploads import MultipartFile, clean_filename
from shared.errors import InvalidRequestError

BOUNDARY = "xyz"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    """One part of a form."""
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\nContent-Type: text/html\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole body."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def opened(body: bytes, size: int = 7) -> MultipartFile:
    """The body, arriving in chunks of `size` bytes."""
    stream = io.BytesIO(body)
    return MultipartFile(CONTENT_TYPE, lambda: stream.read(size))


def drain(file: MultipartFile, size: int = 1000) -> bytes:
    """The file in it."""
    return b"".join(iter(lambda: file.read(size), b""))


@given(
    data=st.binary(max_size=300)
    | st.lists(st.sampled_from([b"\r\n", b"--xyz", b"-", b"a"]), max_size=40).map(b"".join),
    chunk=st.integers(1, 50),
    read=st.integers(1, 400),
    fields_first=st.booleans(),
)
def test_a_file_arrives_whole_however_it_is_cut(data: bytes, chunk: int, read: int, fields_first: bool) -> None:
    if b"\r\n--xyz" in b"\r\n" + data:
        data = data.replace(b"--xyz", b"==xyz")  # a real sender would choose another boundary
    parts = [part("purpose", b"manifest"), part("file", data, "a.bin")]
    file = opened(form(*(parts if fields_first else reversed(parts))), chunk)
    assert file.peek(5) == data[:5]
    assert drain(file, read) == data
    file.finish()
    assert (file.filename, file.purpose) == ("a.bin", "manifest")


def test_reads_are_as_long_as_asked_for() -> None:
    file = opened(form(part("file", bytes(10_000), "zeros")), size=11)
    assert [len(chunk) for chunk in iter(lambda: file.read(4000), b"")] == [4000, 4000, 2000]


def test_the_purpose_is_optional() -> None:
    file = opened(form(part("file", b"x", "a")))
    drain(file)
    file.finish()
    assert file.purpose == "user_data"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        form(),
        form(part("purpose", b"x")),
        part("file", b"no end", "a"),
        form(part("file", b"x", "a"))[:-6],
        form(part("file", b"x", "a"), part("file", b"y", "b")),
        form(part("file", b"x", "a"), part("purpose", b"y" * 5000)),
        form(part("file", b"x", "a"), *(part(f"field-{i}", b"y") for i in range(20))),
        form(part("file", b"x", "a"), part("purpose", b"Not A Word")),
    ],
)
def test_what_is_no_form_with_one_file_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):  # noqa: PT012  # which step notices does not matter
        file = opened(body)
        file.peek(1)
        drain(file)
        file.finish()
        _ = file.purpose


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"]
)
def test_other_content_types_are_refused(content_type: str | None) -> None:
    with pytest.raises(InvalidRequestError):
        MultipartFile(content_type, lambda: b"")


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\cat.png", "cat.png"),
        ("a\x00b\r\nc\u2028d", "abcd"),
        ("", "file"),
        ("..", "file"),
        ("/", "file"),
        ("  ", "file"),
        ("猫.png", "猫.png"),
        ("x" * 300, "x" * 255),
    ],
)
def test_filenames_lose_folders_and_control_characters(name: str, clean: str) -> None:
    assert clean_filename(name) == clean


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"RIFF....WAVEfmt ", "audio/wav"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
        (b"ID3\x04", "audio/mpeg"),
        (b"PK\x03\x04", "application/zip"),
        (b"PAR1", "application/vnd.apache.parquet"),
        (b"name".ljust(257, b"\0") + b"ustar", "application/x-tar"),
        (b'{"id": 1}\n{"id": 2}\n', "application/x-ndjson"),
        (b'\xef\xbb\xbf{"id": 1}\n', "application/x-ndjson"),
        (b'{"id":\n 1}', "application/json"),
        (b"[1, 2]", "application/json"),
        (b"<html><script>", "text/plain; charset=utf-8"),
        (b"BMW is a car", "text/plain; charset=utf-8"),
        ("猫".encode()[:-1], "text/plain; charset=utf-8"),
        (b"\xff\x00", "application/octet-stream"),
        (b"a\x00b", "application/octet-stream"),
    ],
)
def test_types_come_from_the_first_bytes(head: bytes, kind: str) -> None:
    assert sniff(head) == kind
