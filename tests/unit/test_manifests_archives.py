"""Tar and zip: every member at its place, items from a manifest or from names, and what must not be unpacked."""

import contextlib
import gzip
import hashlib
import io
import json
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatcher.manifests.detection import open_object
from services.dispatcher.manifests.reading import Reading
from services.dispatcher.manifests.tar import index_tar
from services.dispatcher.manifests.zip import index_zip
from shared.errors import JobError
from shared.settings import Limits
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, TOKEN, Planned, media_bytes, plan_source

Files = Mapping[str, bytes]


def make_tar(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def reading(store: MemoryStore, **limits: Any) -> Reading:
    return Reading(store, Limits(**limits), JOB_ID, TOKEN)


def plan(data: bytes, **limits: Any) -> tuple[Planned, MemoryStore]:
    store = MemoryStore()
    store.put("archive", data)
    context = reading(store, **limits)
    return plan_source(open_object(context, "archive"), store, limits=context.limits), store


def refused(data: bytes, **limits: Any) -> str:
    with pytest.raises(JobError) as caught:
        plan(data, **limits)
    return caught.value.error_code


def manifest(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


CHARACTERS = st.characters(codec="utf-8", exclude_characters="/\\:\x00", exclude_categories=["Cc", "Cs"])
PARTS = st.text(CHARACTERS, min_size=1, max_size=60).filter(lambda part: part not in {".", ".."})
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join).map(partial(unicodedata.normalize, "NFC"))


@given(
    files=st.dictionaries(NAMES, st.binary(max_size=3000), min_size=1, max_size=8),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=60, deadline=None)
def test_members_of_a_tar_are_where_tarfile_finds_them(files: dict[str, bytes], format: int) -> None:
    store = MemoryStore()
    data = make_tar(files, format)
    store.put("archive", data)
    index = index_tar(reading(store), "archive")
    found = index.find(list(files))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            if not info.name.endswith("/"):
                at = found[info.name]
                assert (at.offset, at.size) == (info.offset_data, info.size)
                assert store.get("archive", offset=at.offset, length=at.size) == files[info.name]
                assert at.sha256 == hashlib.sha256(files[info.name]).hexdigest()


@given(
    files=st.dictionaries(NAMES, st.binary(max_size=3000), min_size=1, max_size=8),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
)
@settings(max_examples=60, deadline=None)
def test_members_of_a_zip_are_in_the_tar_it_becomes(files: dict[str, bytes], compression: int) -> None:
    store = MemoryStore()
    store.put("archive", make_zip(files, compression))
    found = index_zip(reading(store), "archive").find(list(files))
    assert set(found) == set(files)
    for name, data in files.items():
        assert media_bytes(store, found[name]) == data
        assert found[name].sha256 == hashlib.sha256(data).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(next(v for (_, k), v in store.objects.items() if k != "archive"))) as archive:
        unpacked = [archive.extractfile(info).read() for info in archive]
    assert unpacked == list(files.values())


@pytest.mark.parametrize("pack", [make_tar, make_zip])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("folder", ["", "data/", "./"])
def test_a_manifest_before_or_behind_its_media(pack: Callable[[Files], bytes], first: bool, folder: str) -> None:
    media = {f"{folder}img/b.png": b"b", f"{folder}a.wav": b"a", f"{folder}notes.txt": b"not an item"}
    text = {
        f"{folder}manifest.jsonl": manifest(
            {"id": "1", "image": "img/b.png", "audio": "./a.wav"},
            {"id": "2", "image": "../b.png", "text": "x"},
            {"id": "3", "image": "/img/b.png", "text": "x"},
            {"id": "4", "image": "img/none.png", "text": "x"},
        )
    }
    found, store = plan(pack({**text, **media} if first else {**media, **text}))
    missing = ["missing_media"]
    assert found.outcome == {"1": [], "2": missing, "3": missing, "4": missing}
    assert media_bytes(store, found.items[0].image) == b"b"
    assert media_bytes(store, found.items[0].audio) == b"a"


@pytest.mark.parametrize("pack", [make_tar, make_zip])
def test_without_a_manifest_members_with_one_stem_are_one_item(pack: Callable[[Files], bytes]) -> None:
    found, store = plan(
        pack(
            {
                "b/0002.jpg": b"JPEG2",
                "b/0001.txt": b"\xef\xbb\xbfa caption\r\n",
                "b/0001.jpg": b"JPEG1",
                "b/0001.cls": b" 7\n",
                "b/0001.json": json.dumps({"target": 0.5, "width": 640, "metadata": {"by": "me"}}).encode(),
                "b/0002.flac": b"FLAC",
                "c.d.e.txt": "你好".encode(),
                "README.md": b"read me",
                ".hidden.jpg": b"no",
                "__MACOSX/b/._0001.jpg": b"no",
            }
        )
    )
    assert [item.id for item in found.items] == ["b/0002", "b/0001", "c.d.e"]
    assert found.failures == []
    second, first, third = found.items
    assert (media_bytes(store, second.image), media_bytes(store, second.audio)) == (b"JPEG2", b"FLAC")
    assert (first.text, first.label, first.target) == ("a caption", ["7"], 0.5)
    assert first.metadata == {"width": 640, "by": "me"}
    assert media_bytes(store, first.image) == b"JPEG1"
    assert third.text == "你好"


def test_what_is_wrong_with_grouped_members() -> None:
    found, _ = plan(
        make_tar(
            {
                "twice.jpg": b"1", "twice.png": b"2", "twice.txt": b"x",
                "utf.txt": b"\xff", "utf.png": b"3",
                "long.txt": b"x" * 101, "long.png": b"4",
                "json.json": b"{", "json.txt": b"x",
                "array.json": b"[]", "array.txt": b"x",
                "alone.json": b"{}",
                "big.png": b"x" * 51, "big.txt": b"x",
                "fine.txt": b"x",
            }
        ),
        text_bytes=100, media_bytes=50,
    )  # fmt: skip
    assert found.outcome == {
        "twice": ["invalid_item"], "utf": ["corrupt_media"], "long": ["text_too_large"], "json": ["invalid_json"],
        "array": ["invalid_item"], "alone": ["invalid_item"], "big": ["media_too_large"], "fine": [],
    }  # fmt: skip
    assert [item.id for item in found.items] == ["twice", "utf", "long", "big", "fine"]
    assert found.items[0].text == "x"


def test_names_are_found_in_either_unicode_form() -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    found, store = plan(make_tar({decomposed: b"x", "manifest.jsonl": manifest({"id": "1", "image": composed})}))
    assert media_bytes(store, found.items[0].image) == b"x"


def test_of_two_members_with_one_name_the_later_counts() -> None:
    later = make_tar({"a.png": b"new", "a.txt": b"x"})
    found, store = plan(make_tar({"a.png": b"old"})[:1024] + later)
    assert [item.id for item in found.items] == ["a"]
    assert media_bytes(store, found.items[0].image) == b"new"


def test_a_gzipped_tar_is_unpacked() -> None:
    found, store = plan(gzip.compress(make_tar({"a.png": b"image", "a.txt": b"x"})))
    assert media_bytes(store, found.items[0].image) == b"image"


def test_an_old_tar_without_magic_is_recognised() -> None:
    data = bytearray(make_tar({"a.txt": b"x"}, tarfile.USTAR_FORMAT))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\x00 " % sum(data[:512])
    found, _ = plan(bytes(data))
    assert found.outcome == {"a": []}


def special(type: bytes, linkname: str = "target") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = type, linkname
        archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(type: bytes) -> None:
    assert refused(special(type)) == "unsafe_archive"


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "a/../../b.png", "C:/a.png"])
@pytest.mark.parametrize("pack", [make_tar, make_zip])
def test_names_that_lead_out_are_refused(pack: Callable[[Files], bytes], name: str) -> None:
    assert refused(pack({"a.txt": b"x", name: b"x"})) == "unsafe_archive"


def test_backslashes_in_a_zip_separate_folders() -> None:
    found, _ = plan(make_zip({"a\\b.txt": b"x"}))
    assert found.outcome == {"a/b": []}
    assert refused(make_zip({"..\\b.txt": b"x"})) == "unsafe_archive"


def test_a_link_in_a_zip_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert refused(buffer.getvalue()) == "unsafe_archive"


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(make_zip({"a.txt": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert refused(bytes(data)) == "unsupported_manifest"


def test_a_bomb_is_refused() -> None:
    bomb = make_zip({f"{i}.txt": bytes(20_000_000) for i in range(2)})
    assert refused(bomb) == "archive_too_large"
    assert refused(make_zip({"a.bin": bytes(3_000_000)}), archive_bytes=2_000_000) == "archive_too_large"


@pytest.mark.parametrize("pack", [make_tar, make_zip])
def test_too_many_members_are_refused(pack: Callable[[Files], bytes]) -> None:
    assert refused(pack({f"{i}.txt": b"x" for i in range(5)}), archive_members=4) == "archive_too_large"


def test_a_zip_that_lies_about_its_members_is_refused() -> None:
    honest = make_zip({"a.txt": b"x" * 1000})
    at = honest.index(b"PK\x01\x02")
    longer = bytearray(honest)
    longer[at + 24 : at + 28] = (2000).to_bytes(4, "little")
    assert refused(bytes(longer)) == "corrupt_archive"
    damaged = bytearray(make_zip({"a.txt": bytes(range(256)) * 20}, zipfile.ZIP_STORED))
    damaged[600] ^= 0xFF
    assert refused(bytes(damaged)) == "corrupt_archive"
    assert refused(honest[:-30]) == "corrupt_archive"


def test_a_damaged_tar_is_refused_wherever_it_breaks() -> None:
    data = make_tar({"a.txt": b"x" * 2000, "b.txt": b"y" * 2000})
    assert refused(data[:1500]) == "corrupt_archive"
    header_of_b = 512 + 2048
    assert refused(data[:header_of_b] + b"\x01" * 512 + data[header_of_b + 512 :]) == "corrupt_archive"
    assert refused(data[: header_of_b + 100]) == "corrupt_archive"


def test_a_tar_without_its_last_blocks_is_read() -> None:
    data = make_tar({"a.txt": b"x" * 512})
    assert plan(data[:1024])[0].outcome == {"a": []}


def test_a_header_that_claims_to_be_huge_is_refused_without_reading_it() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    assert refused(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)) == "corrupt_archive"


@given(data=st.binary(max_size=400), at=st.integers(0, 4000))
@settings(max_examples=150, deadline=None)
def test_whatever_the_bytes_the_answer_is_a_plan_or_a_job_error(data: bytes, at: int) -> None:
    for archive in (make_tar({"a.txt": b"x" * 900, "b.png": b"y"}), make_zip({"a.txt": b"x" * 900, "b.png": b"y"})):
        start = min(at, len(archive))
        with contextlib.suppress(JobError):
            plan(archive[:start] + data + archive[start + len(data) :])


@pytest.mark.parametrize("pack", [make_tar, make_zip])
def test_an_empty_archive_has_no_items(pack: Callable[[Files], bytes]) -> None:
    assert refused(pack({})) == "empty_manifest"
    assert refused(pack({"README.md": b"nothing here"})) == "empty_manifest"


def test_two_manifests_side_by_side_are_refused() -> None:
    line = manifest({"id": "1", "text": "x"})
    assert refused(make_tar({"a/manifest.jsonl": line, "b/manifest.jsonl": line})) == "unsupported_manifest"
    assert plan(make_tar({"a/manifest.jsonl": b"{", "manifest.jsonl": line}))[0].outcome == {"1": []}
