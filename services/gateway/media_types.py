"""What a file is, from its first bytes: names and headers that callers send are not believed."""

import codecs

#: As many first bytes as `sniff` looks at; a tar names itself at byte 257.
HEAD_BYTES = 4096

#: Content type by the bytes at certain places.
_SIGNATURES: tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...] = (
    ("image/png", ((0, b"\x89PNG\r\n\x1a\n"),)),
    ("image/jpeg", ((0, b"\xff\xd8\xff"),)),
    ("image/gif", ((0, b"GIF8"), (5, b"a"))),
    ("image/webp", ((0, b"RIFF"), (8, b"WEBP"))),
    ("image/tiff", ((0, b"II*\x00"),)),
    ("image/tiff", ((0, b"MM\x00*"),)),
    ("image/bmp", ((0, b"BM"), (6, b"\x00\x00\x00\x00"))),
    ("audio/wav", ((0, b"RIFF"), (8, b"WAVE"))),
    ("audio/flac", ((0, b"fLaC"),)),
    ("audio/ogg", ((0, b"OggS"),)),
    ("audio/mpeg", ((0, b"ID3"),)),
    ("audio/mpeg", ((0, b"\xff\xfb"),)),
    ("audio/mpeg", ((0, b"\xff\xf3"),)),
    ("audio/mpeg", ((0, b"\xff\xf2"),)),
    ("audio/mp4", ((4, b"ftypM4A"),)),
    ("video/mp4", ((4, b"ftyp"),)),
    ("application/zip", ((0, b"PK\x03\x04"),)),
    ("application/zip", ((0, b"PK\x05\x06"),)),
    ("application/gzip", ((0, b"\x1f\x8b"),)),
    ("application/vnd.apache.parquet", ((0, b"PAR1"),)),
    ("application/x-tar", ((257, b"ustar"),)),
)


def sniff(head: bytes) -> str:
    """The content type of a file that begins with `head` (HEAD_BYTES of it, or all)."""
    for kind, marks in _SIGNATURES:
        if all(head.startswith(mark, place) for place, mark in marks):
            return kind
    if not _is_text(head):
        return "application/octet-stream"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):
        return "application/x-ndjson" if _first_line_closes(start) else "application/json"
    return "application/json" if start.startswith(b"[") else "text/plain; charset=utf-8"


def _first_line_closes(text: bytes) -> bool:
    line, newline, _ = text.partition(b"\n")
    return bool(newline) and line.rstrip().endswith(b"}")


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        return False
    return True
