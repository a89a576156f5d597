"""Uploaded archives: tar and zip with names that lead out, links, lies, bombs and ruins."""

import gzip
import io
import json
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

from tests.corpus.cases import Manifest

#: As many members may an archive have here.
MEMBERS = 1000

_ITEM = json.dumps({"id": "a", "text": "x"}).encode()
_NAMES_OUT = ("/etc/passwd", "../a.txt", "a/../../b.txt", "C:/a.txt", "./../a.txt", "//host/share/a.txt")


def cases() -> list[Manifest]:
    """All of them."""
    return [
        Manifest(name, *case)
        for group in (_tars(), _broken_tars(), _zips(), _broken_zips())
        for name, case in group.items()
    ]


def _tars() -> dict[str, tuple[bytes, str]]:
    nested = _tar({"inner.tar": _tar({"a.txt": b"x"}), "a.txt": b"x"})
    kinds = {
        "symbolic link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "character device": tarfile.CHRTYPE,
        "block device": tarfile.BLKTYPE,
        "named pipe": tarfile.FIFOTYPE,
        "sparse file": tarfile.GNUTYPE_SPARSE,
    }
    return {
        **{f"tar: {name!r}": (_tar({name: b"x", "manifest.jsonl": _ITEM}), "unsafe_archive") for name in _NAMES_OUT},
        **{
            f"tar: {name}": (_tar({"manifest.jsonl": _ITEM, "a.txt": b""}, kind), "unsafe_archive")
            for name, kind in kinds.items()
        },
        "tar: backslashes, which are no separators there": (_tar({"a\\..\\b.txt": b"x"}), "a\\..\\b ok"),
        "tar: manifest and media": (_tar({"m/manifest.jsonl": _ITEM, "m/a.png": b""}), "a ok"),
        "tar: the same name again": (_tar([("a.txt", b"\xff"), ("a.txt", b"x")]), "a ok"),
        "tar: names that are the same once normalised": (_tar([("./a.txt", b"\xff"), ("a.txt", b"x")]), "a ok"),
        "tar: names that are the same in Unicode": (
            _tar([("e\u0301.txt", b"\xff"), ("\u00e9.txt", b"x")]),
            "\u00e9 ok",
        ),
        "tar: two manifests": (_tar({"a/manifest.jsonl": _ITEM, "b/manifest.jsonl": _ITEM}), "unsupported_manifest"),
        "tar: a tar within": (nested, "a ok"),
        "tar: hidden files and those of macOS": (_tar({".a.txt": b"x", "__MACOSX/a.txt": b"x", "b.txt": b"y"}), "b ok"),
        "tar: names of 5,000 characters": (_tar({"d/" * 2500 + "a.txt": b"x"}), "every_item_failed"),
        "tar: names of no UTF-8": (_tar({"\udcff.txt": b"x"}), "\ufffd ok"),
        "tar: control characters": (_tar({"a\nb\r.txt": b"x", "Icon\r": b"", "c.txt": b"y"}), "ab ok, c ok"),
        "tar: dots around a control character": (_tar({".\x01./a.txt": b"x"}), "unsafe_archive"),
        "tar: stems that are no ids": (_tar({"a" * 257 + ".txt": b"x", "c.txt": b"y"}), "c ok, line-1 invalid_item"),
        "tar: nothing of use": (_tar({"README": b"x"}), "empty_manifest"),
        "tar: no members": (bytes(10_240), "empty_manifest"),
        "tar: more members than are allowed": (
            _tar({f"{i}.txt": b"x" for i in range(MEMBERS + 1)}),
            "archive_too_large",
        ),
        "tar: gzipped": (gzip.compress(_tar({"a.txt": b"x"}), mtime=0), "a ok"),
        "tar: gzipped bomb": (gzip.compress(_tar({"a.txt": bytes(20 * 2**20)}), mtime=0), "archive_too_large"),
    }


def _broken_tars() -> dict[str, tuple[bytes, str]]:
    good = _tar({"a.txt": b"x" * 600, "b.txt": b"y"})
    return {
        "tar: cut off within a member": (good[:700], "corrupt_archive"),
        "tar: cut off within a header": (good[:1600], "corrupt_archive"),
        "tar: a checksum that is wrong": (good[:1536] + b"B" + good[1537:], "corrupt_archive"),
        "tar: a size over the end": (_with_size(good, b"77777777777"), "corrupt_archive"),
        "tar: a size of 2⁶³": (_with_size(good, b"\x80\0\0\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), "corrupt_archive"),
        "tar: a size below zero": (_with_size(good, b"\xff" * 12), "corrupt_archive"),
        "tar: a size that is no number": (_with_size(good, b"lots\0"), "unsupported_manifest"),
        "tar: a long name of 1 GiB": (_extended(b"L", 2**30), "corrupt_archive"),
        "tar: an extended header of 1 GiB": (_extended(b"x", 2**30), "corrupt_archive"),
        "tar: an extended header of 8 MiB": (
            _extended(b"x", 2**23, b"8388608 comment=" + b"x" * 2**23),
            "corrupt_archive",
        ),
        "tar: an extended size that is a lie": (_pax({"size": "999999999"}), "corrupt_archive"),
        "tar: an extended size below zero": (_pax({"size": "-1024"}), "corrupt_archive"),
        "tar: an extended path that leads out": (_pax({"path": "../../etc/passwd"}), "unsafe_archive"),
        "tar: an extended path with a NUL": (_pax({"path": "a\0.txt"}), "unsafe_archive"),
        "tar: extended records without end": (_extended(b"x", 512, b"999999999999 path=a\n"), "unsafe_archive"),
        "tar: a sparse file by extended records": (
            _pax(
                {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "a.txt",
                    "GNU.sparse.realsize": "99999999999",
                }
            ),
            "corrupt_archive",
        ),
        "tar: 2,000 extended headers in a row": (_extended(b"x", 0) * 2000 + good, "corrupt_archive"),
    }


def _zips() -> dict[str, tuple[bytes, str]]:
    return {
        **{f"zip: {name!r}": (_zip({name: b"x", "manifest.jsonl": _ITEM}), "unsafe_archive") for name in _NAMES_OUT},
        "zip: '..\\\\..\\\\a.txt'": (_zip({"..\\..\\a.txt": b"x"}), "unsafe_archive"),
        "zip: 'C:\\\\a.txt'": (_zip({"C:\\a.txt": b"x"}), "unsafe_archive"),
        "zip: '\\\\\\\\host\\\\a.txt'": (_zip({"\\\\host\\a.txt": b"x"}), "unsafe_archive"),
        "zip: symbolic link": (_zip({"a.txt": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "unsafe_archive"),
        "zip: device": (_zip({"a.txt": b""}, mode=stat.S_IFCHR | 0o666), "unsafe_archive"),
        "zip: folders by backslashes": (_zip({"m\\manifest.jsonl": _ITEM}), "a ok"),
        "zip: the same name again": (_zip([("a.txt", b"\xff"), ("a.txt", b"x")]), "a ok"),
        "zip: names that are the same once normalised": (_zip([(".\\a.txt", b"\xff"), ("a.txt", b"x")]), "a ok"),
        "zip: a zip within": (_zip({"inner.zip": _zip({"a.txt": b"x"}), "a.txt": b"x"}), "a ok"),
        "zip: nothing of use": (_zip({"README": b"x"}), "empty_manifest"),
        "zip: no members": (_zip({}), "empty_manifest"),
        "zip: 64-bit": (_zip({"a.txt": b"x"}, zip64=True), "a ok"),
        "zip: bomb": (_zip({"a.txt": bytes(20 * 2**20)}), "archive_too_large"),
        "zip: bomb of many members": (_zip({f"{i}.txt": bytes(2**20) for i in range(20)}), "archive_too_large"),
        "zip: bomb of members that overlap": (_overlapping(2 * 2**20, 20), "archive_too_large"),
        "zip: members that overlap": (_overlapping(10, 3), "a ok"),
        "zip: LZMA": (_zip({"a.txt": b"x"}, zipfile.ZIP_LZMA), "a ok"),
        "zip: LZMA bomb": (_zip({"a.txt": bytes(24 * 2**20)}, zipfile.ZIP_LZMA), "archive_too_large"),
        "zip: bzip2 bomb": (_zip({"a.txt": bytes(24 * 2**20)}, zipfile.ZIP_BZIP2), "archive_too_large"),
        "zip: more members than are allowed": (
            _zip({f"{i}.txt": b"" for i in range(MEMBERS + 1)}),
            "archive_too_large",
        ),
        "zip: comment with another end in it": (
            _zip({"a.txt": b"x"}, comment=_zip({"b.txt": b"y"})[-22:]),
            "corrupt_archive",
        ),
        "zip: behind a program": (b"MZ" + bytes(100) + _zip({"a.txt": b"x"}), "unsupported_manifest"),
    }


def _broken_zips() -> dict[str, tuple[bytes, str]]:
    good = _zip({"a.txt": b"x" * 100, "b.txt": b"y"})
    directory = good.index(b"PK\1\2")
    end = good.index(b"PK\5\6")
    return {
        "zip: signature alone": (b"PK\3\4", "corrupt_archive"),
        "zip: cut off": (good[:-30], "corrupt_archive"),
        "zip: a directory that lies outside": (_patched(good, end + 16, "<I", 2**31), "corrupt_archive"),
        "zip: a directory of 4 GiB": (_patched(good, end + 12, "<I", 2**32 - 2), "corrupt_archive"),
        "zip: 65,534 members said, two there": (_patched(good, end + 8, "<HH", 65_534, 65_534), "a ok, b ok"),
        "zip: another name in the member's header": (good.replace(b"a.txt", b"c.txt", 1), "corrupt_archive"),
        "zip: a size that is too small": (_patched(good, directory + 24, "<I", 5), "corrupt_archive"),
        "zip: a size that is too large": (_patched(good, directory + 24, "<I", 10**9), "corrupt_archive"),
        "zip: a packed size that is too large": (_patched(good, directory + 20, "<I", 10**9), "a ok, b ok"),
        "zip: a checksum that is wrong": (_patched(good, directory + 16, "<I", 7), "corrupt_archive"),
        "zip: a member that lies outside": (_patched(good, directory + 42, "<I", 10**9), "corrupt_archive"),
        "zip: encrypted": (_patched(good, directory + 8, "<H", 1), "unsupported_manifest"),
        "zip: encrypted, says the member alone": (_patched(good, 6, "<H", 1), "a ok, b ok"),
        "zip: a compression that is not read": (_patched(good, directory + 10, "<H", 97), "unsupported_manifest"),
        "zip: a name with a NUL": (good.replace(b"a.txt", b"a\0txt"), "b ok"),
        "zip: noise for a member": (good[:35] + b"\xff" * 5 + good[40:], "corrupt_archive"),
        "zip: 64-bit fields without end": (
            _patched(_zip({"a.txt": b"x"}, zip64=True), -22 + 16, "<I", 2**32 - 1),
            "corrupt_archive",
        ),
    }


def _members(files: Mapping[str, bytes] | list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return files if isinstance(files, list) else list(files.items())


def _tar(files: Mapping[str, bytes] | list[tuple[str, bytes]], last: bytes = tarfile.REGTYPE) -> bytes:
    """A tar; its last member is of type `last`."""
    target = io.BytesIO()
    members = _members(files)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for position, (name, data) in enumerate(members, 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if position == len(members):
                info.type, info.linkname = last, "/etc/passwd" if last in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _checked(header: bytes) -> bytes:
    """A header with the right checksum."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def _with_size(archive: bytes, size: bytes) -> bytes:
    return _checked(archive[:124] + size.ljust(12, b"\0") + archive[136:512]) + archive[512:]


def _extended(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """An extended header that says `size`, with another content, and a member behind it."""
    info = tarfile.TarInfo("long")
    info.size, info.type = size, kind
    body = content + bytes(-len(content) % 512)
    return info.tobuf(tarfile.GNU_FORMAT) + body + (b"" if size == 0 else _tar({"a.txt": b"x"}))


def _pax(records: dict[str, str]) -> bytes:
    """A member with these extended records."""
    info = tarfile.TarInfo("a.txt")
    info.size, info.pax_headers = 1, records
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x"))
    return target.getvalue()


def _zip(
    files: Mapping[str, bytes] | list[tuple[str, bytes]],
    compression: int = zipfile.ZIP_DEFLATED,
    *,
    mode: int = 0o644,
    zip64: bool = False,
    comment: bytes = b"",
) -> bytes:
    import warnings

    target = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(target, "w", compression) as archive:
        archive.comment = comment
        for name, data in _members(files):
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is, with backslashes
            info.external_attr = mode << 16
            info.compress_type = compression
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(data)
    return target.getvalue()


def _patched(data: bytes, place: int, format: str, *values: Any) -> bytes:
    place %= len(data)
    packed = struct.pack(format, *values)
    return data[:place] + packed + data[place + len(packed) :]


def _overlapping(size: int, members: int) -> bytes:
    """One member's data under many entries of the directory, all of the same name."""
    single = _zip({"a.txt": bytes(size)})
    directory, end = single.index(b"PK\1\2"), single.index(b"PK\5\6")
    entry = single[directory:end]
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, members, members, len(entry) * members, directory, 0)
    return single[:directory] + entry * members + tail
