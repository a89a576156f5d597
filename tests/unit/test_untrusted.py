"""What parses the words of strangers: whatever they are, it is the deliberate error or something harmless."""

import base64
import io
import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.manifests.jsonl import read_jsonl
from services.dispatcher.manifests.members import member_name
from services.gateway.uploads import clean_filename
from shared.errors import ItemError, JobError
from shared.planning.media import decode_data_uri, is_data_uri

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

#: Parts of names that mean something to somebody, mixed with any text.
NAME_PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "C:",
    "\x00",
    "\n",
    "\r",
    "\u202e",
    "\u2028",
    "e\u0301",
    "a",
    " ",
    "~",
    "%2e",
    ".txt",
]
NAMES = st.one_of(st.lists(st.sampled_from(NAME_PIECES), max_size=9).map("".join), st.text(max_size=40))


@given(NAMES)
def test_a_members_name_stays_in_its_archive(name: str) -> None:
    try:
        clean = member_name(name)
    except JobError as error:
        if error.error_code == "unsafe_archive":
            return
        raise
    assert not PurePosixPath(clean).is_absolute()
    assert ".." not in clean.split("/")
    assert not CONTROL.search(clean)
    assert unicodedata.is_normalized("NFC", clean)
    assert member_name(clean) == clean


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "C:/a", ".\n./a", "\n/a", "a\0b", "./../a"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(JobError, match="leads out"):
        member_name(name)


@given(NAMES)
def test_a_files_name_is_one_part_of_a_path(name: str) -> None:
    clean = clean_filename(name)
    assert 0 < len(clean) <= 255
    assert not set("/\\") & set(clean)
    assert clean not in {".", ".."}
    assert not CONTROL.search(clean)
    assert not any(
        unicodedata.bidirectional(letter) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}
        for letter in clean
    )
    assert clean_filename(clean) == clean


URI_PIECES = [
    "data:",
    ";",
    ",",
    "base64",
    ";base64,",
    "image/png",
    "charset=x",
    "%",
    "%00",
    "%zz",
    "AAAA",
    "=",
    "==",
    " ",
    "\n",
    "\u00e4",
]
LIMIT = 30


@given(st.lists(st.sampled_from(URI_PIECES), max_size=9).map(lambda pieces: "data:" + "".join(pieces)))
def test_a_data_uri_is_bytes_or_an_items_error(uri: str) -> None:
    assert is_data_uri(uri)
    try:
        data = decode_data_uri(uri, LIMIT)
    except ItemError as error:
        if error.error_code in {"corrupt_media", "media_too_large"}:
            return
        raise
    assert len(data) <= len(uri)


@given(st.binary(max_size=LIMIT), st.sampled_from(["", "image/png", "a/b;charset=utf-8", "a/b;;x"]))
def test_data_uris_are_read_as_they_were_written(data: bytes, kind: str) -> None:
    assert decode_data_uri(f"data:{kind};base64,{base64.b64encode(data).decode()}", LIMIT) == data
    assert decode_data_uri(f"data:{kind},{quote_from_bytes(data)}", LIMIT) == data


LINE_PIECES = [
    b"{",
    b"}",
    b'"id"',
    b":",
    b'"a"',
    b",",
    b"[",
    b"]",
    b"1e999",
    b"NaN",
    b"\\ud800",
    b"\xff",
    b"\0",
    b"\r",
    b"\n",
    b" ",
]
LINES = st.one_of(st.lists(st.sampled_from(LINE_PIECES), max_size=30).map(b"".join), st.binary(max_size=200))


@given(LINES, st.integers(1, 40))
def test_every_line_is_a_row_or_a_problem(data: bytes, limit: int) -> None:
    rows = list(read_jsonl(io.BytesIO(data), limit))
    lines = data.split(b"\n")
    assert [row.line for row in rows] == sorted({row.line for row in rows})
    assert all(row.problems.keys() <= {None} for row in rows)
    assert {problem.code for row in rows for problem in row.problems.values()} <= {"invalid_json", "invalid_item"}
    said = {row.line for row in rows}
    assert {number for number, line in enumerate(lines, 1) if line.strip() and number > 1} <= said
    assert all(lines[number - 1] for number in said)
