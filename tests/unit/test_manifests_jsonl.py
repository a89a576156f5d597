"""JSON lines: a broken line costs itself and nothing else."""

import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatcher.manifests.detection import open_object
from services.dispatcher.manifests.jsonl import read_jsonl
from services.dispatcher.manifests.ranged import BLOCK_BYTES, RangedObject
from services.dispatcher.manifests.reading import Reading
from shared.errors import JobError
from shared.settings import Limits
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, TOKEN, Planned, plan_source


def plan(data: bytes, **options: Any) -> Planned:
    store = MemoryStore()
    store.put("manifest", data)
    reading = Reading(store, options.get("limits") or Limits(), JOB_ID, TOKEN)
    return plan_source(open_object(reading, "manifest"), store, **options)


#: A line, and what it becomes; None for a line that is no item at all.
LINES: dict[bytes, str | None] = {
    b'{"id": "%d", "text": "a"}': "planned",
    '{"id": "%d", "text": "\u4f60\u597d"}'.encode(): "planned",
    b"": None,
    b"  \t": None,
    b'{"id": "%d", "text": "a"': "invalid_json",
    b'{"id": "%d", "text": "\xff\xfe"}': "invalid_json",
    b'{"id": "%d", "text": "\\ud800"}': "invalid_json",
    b'{"id": "%d", "text": NaN}': "invalid_json",
    b"[" * 1500: "invalid_json",
    b'["%d"]': "invalid_item",
    b'{"id": "%d", "text": "' + b"x" * 3000 + b'"}': "invalid_item",
}


@given(
    kinds=st.lists(st.sampled_from(list(LINES)), min_size=1, max_size=30),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last_end=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
@settings(max_examples=80, deadline=None)
def test_every_line_is_accounted_for_once(kinds: list[bytes], end: bytes, last_end: bool, mark: bytes) -> None:
    kinds = [b'{"id": "%d", "text": "a"}', *kinds]
    lines = [kind.replace(b"%d", str(number).encode()) for number, kind in enumerate(kinds, 1)]
    data = mark + end.join(lines) + (end if last_end else b"")

    found = plan(data, limits=Limits(line_bytes=2000))

    outcomes = [(number, outcome) for number, kind in enumerate(kinds, 1) if (outcome := LINES[kind])]
    assert found.plan.items_total == len(outcomes)
    assert [item.id for item in found.items] == [str(number) for number, outcome in outcomes if outcome == "planned"]
    assert [(failure.item_index, failure.item_id, failure.code) for failure in found.failures] == [
        (index, f"line-{number}", outcome) for index, (number, outcome) in enumerate(outcomes) if outcome != "planned"
    ]


def test_a_broken_line_5000_is_named_so() -> None:
    lines = [json.dumps({"id": f"item-{i}", "text": "x"}) for i in range(1, 6001)]
    lines[4999] = lines[4999][:-1]
    found = plan("\n".join(lines).encode(), shard_size=256)
    [failure] = found.failures
    assert (failure.item_id, failure.item_index, failure.code) == ("line-5000", 4999, "invalid_json")
    assert "column" in failure.message
    assert len(found.items) == 5999


def test_a_line_at_the_limit_is_read_and_one_above_it_is_not() -> None:
    line = b'{"id": "a", "text": "%s"}' % (b"x" * 200)
    rows = list(read_jsonl(io.BytesIO(line + b"\n" + line), len(line)))
    assert all(not row.problems for row in rows)
    rows = list(read_jsonl(io.BytesIO(line + b"\n" + line), len(line) - 1))
    assert [row.problems[None].code for row in rows] == ["invalid_item", "invalid_item"]


def test_lines_longer_than_a_block_are_read_across_blocks() -> None:
    text = "x" * (BLOCK_BYTES + 1000)
    data = b"".join(json.dumps({"id": str(i), "text": text}).encode() + b"\n" for i in range(3))
    found = plan(data, limits=Limits(text_bytes=BLOCK_BYTES * 2))
    assert [len(item.text or "") for item in found.items] == [len(text)] * 3


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 220), max_size=8))
@settings(deadline=None)
def test_a_ranged_object_reads_like_a_file(data: bytes, cuts: list[int]) -> None:
    store = MemoryStore()
    store.put("key", b"before" + data + b"after")
    ranged, plain = RangedObject(store, "key", len(data), start=6), io.BytesIO(data)
    for cut in cuts:
        assert ranged.seek(cut) == plain.seek(cut)
        assert ranged.read(7) == plain.read(7)
    assert io.BufferedReader(RangedObject(store, "key", len(data), start=6)).read() == data


def test_gzipped_lines_are_unpacked() -> None:
    found = plan(gzip.compress(b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n', mtime=0))
    assert [item.id for item in found.items] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"", "empty_manifest", "empty"),
        (b" \n\n", "empty_manifest", "empty"),
        (b"id,text\na,b\n", "unsupported_manifest", "neither"),
        (b'["a", "b"]', "unsupported_manifest", "JSON array"),
        (b"\x28\xb5\x2f\xfd1234", "unsupported_manifest", "Zstandard"),
        ('{"id": "a"}'.encode("utf-16"), "unsupported_manifest", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n{\x00", "unsupported_manifest", "neither"),
        (gzip.compress(b'{"id": "a"}' * 100, mtime=0)[:-20], "corrupt_archive", "damaged"),
        (gzip.compress(gzip.compress(b'{"id": "a"}', mtime=0), mtime=0), "unsupported_manifest", "neither"),
    ],
)
def test_what_is_no_manifest_is_refused_in_words(data: bytes, code: str, word: str) -> None:
    with pytest.raises(JobError, match=word) as caught:
        plan(data)
    assert caught.value.error_code == code


def test_a_gzip_bomb_is_refused() -> None:
    bomb = gzip.compress(b'{"id": "a", "text": "x"}\n' * 2_000_000, mtime=0)
    with pytest.raises(JobError) as caught:
        plan(bomb)
    assert caught.value.error_code == "archive_too_large"
