"""The planner: every row is accounted for once, in order, with what is wrong with it in words."""

import base64
import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.catalog import load_catalog
from shared.errors import JobError
from shared.items import MediaLocation
from shared.planning import Problem, Row, Source, plan_inline
from shared.queues import Modality
from shared.schemas import Encoders, FeaturesRequest, Fusion
from shared.settings import Fetching, Limits
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, Planned, media_bytes, plan_source

FILE = "file-01k9w0c3v8e6m5j2k1x7r4t9qz"
OTHER_TENANTS_FILE = "file-01k9w0c3v8e6m5j2k1x7r4t9q0"
LOCATION = MediaLocation(key="blobs/default/upload", size=9, sha256="ab" * 32)


def rows(*items: dict[str, Any]) -> Source:
    return Source(Row(line, fields) for line, fields in enumerate(items, 1))


def plan(*items: dict[str, Any], **options: Any) -> Planned:
    return plan_source(rows(*items), MemoryStore(), **options)


def data_uri(data: bytes, type: str = "image/png") -> str:
    return f"data:{type};base64,{base64.b64encode(data).decode()}"


#: A row, and the codes that planning must find in it.
ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text": ({"text": "a"}, []),
    "file": ({"image": FILE}, []),
    "label": ({"text": "a", "label": ["x", "y"], "target": 1.5, "split": "test", "metadata": {"k": [1]}}, []),
    "unknown field": ({"text": "a", "txet": "b"}, ["invalid_item"]),
    "nothing": ({}, ["invalid_item"]),
    "wrong type": ({"text": 5}, ["invalid_item"]),
    "no such file": ({"image": OTHER_TENANTS_FILE, "text": "a"}, ["missing_media"]),
    "no such file, nothing else": ({"audio": OTHER_TENANTS_FILE}, ["missing_media", "no_usable_modality"]),
    "url": ({"image": "https://example.org/a.png", "text": "a"}, ["missing_media"]),
    "long text": ({"text": "é" * 600, "image": FILE}, ["text_too_large"]),
    "bad base64": ({"image": "data:image/png;base64,@@@@", "text": "a"}, ["corrupt_media"]),
    "large media": ({"image": data_uri(b"x" * 1001), "text": "a"}, ["media_too_large"]),
    "much metadata": ({"text": "a", "metadata": {"k": "x" * 70_000}}, ["invalid_item"]),
}
SMALL = Limits(text_bytes=1000, media_bytes=1000)


@given(kinds=st.lists(st.sampled_from([*ROWS, "twin"]), min_size=1, max_size=40), shard_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_row_is_accounted_for_once_and_in_order(kinds: list[str], shard_size: int) -> None:
    items: list[dict[str, Any]] = []
    expected: list[tuple[int, str]] = []
    planned_indices = []
    valid_ids: list[str] = []
    for index, kind in enumerate(kinds):
        if kind == "twin" and valid_ids:
            items.append({"id": valid_ids[0], "text": "again"})
            expected.append((index, "duplicate_id"))
            continue
        fields, codes = ROWS["text" if kind == "twin" else kind]
        items.append({"id": f"item-{index}", **fields})
        expected += [(index, code) for code in codes]
        if "invalid_item" not in codes:
            valid_ids.append(f"item-{index}")
            if "no_usable_modality" not in codes:
                planned_indices.append(index)

    found = plan(*items, shard_size=shard_size, limits=SMALL, files={FILE: LOCATION})

    assert [item.index for item in found.items] == planned_indices
    assert [item.id for item in found.items] == [items[index]["id"] for index in planned_indices]
    assert [(failure.item_index, failure.code) for failure in found.failures] == expected
    whole = [failure for failure in found.failures if failure.modality is None]
    assert found.plan.failure_count == len(whole)
    assert found.plan.items_total == len(items) == len(planned_indices) + len(whole)
    assert {part.index: part.items for part in found.plan.slices} == Counter(i // shard_size for i in planned_indices)
    for modality in Modality:
        present = sum(getattr(item, modality) is not None for item in found.items)
        assert sum(part.modalities[modality] for part in found.plan.slices) == present
        assert found.plan.schema["modalities"][modality] == present


def test_failures_can_be_read_again_for_a_second_try_at_the_transaction() -> None:
    found = plan({"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"id": "b"})
    assert list(found.plan.failures) == list(found.plan.failures) == found.failures
    assert len(found.failures) == 2


def test_reasons_are_in_words_and_name_the_field() -> None:
    wrong = {"id": "a", "text": "x", "label": [7], "colour": "red", "split": "dev"}
    [failure] = plan(wrong, {"id": "b", "text": "x"}).failures
    assert failure.item_id == "a"
    for word in ("label: Input should be a valid string", "colour: Extra inputs", "split: Input should be 'train'"):
        assert word in failure.message
    assert "red" not in failure.message


def test_a_row_without_a_usable_id_is_named_by_its_line() -> None:
    found = plan_source(
        Source([Row(4, {"text": "x"}), Row(5, {"id": "bad\nid", "text": "x"}), Row(9, {"id": "b", "text": "x"})]),
        MemoryStore(),
    )
    assert found.outcome == {"b": [], "line-4": ["invalid_item"], "line-5": ["invalid_item"]}


def test_the_id_of_a_row_that_failed_can_be_used_by_a_later_one() -> None:
    found = plan({"id": "a"}, {"id": "a", "text": "x"})
    assert [item.index for item in found.items] == [1]


def test_a_problem_of_one_modality_leaves_the_others() -> None:
    row = Row(1, {"id": "a", "text": "", "image": "a.png"}, {Modality.IMAGE: b"x"}, {Modality.TEXT: Problem("c", "m")})
    found = plan_source(Source([row]), MemoryStore())
    assert found.items[0].text is None
    assert found.items[0].image is not None
    assert found.outcome == {"a": ["c"]}


def test_media_are_found_as_files_members_and_data() -> None:
    store = MemoryStore()
    member = MediaLocation(key="jobs/j/plan/media.tar", offset=512, size=3, sha256="cd" * 32)
    asked: list[set[str]] = []

    def find_members(names: Any) -> dict[str, MediaLocation]:
        asked.append(set(names))
        return {"img/a.png": member}

    large = bytes(range(256)) * 40
    items = [
        {"id": "file", "image": FILE},
        {"id": "member", "image": "img/a.png", "audio": "img/none.wav"},
        {"id": "small", "image": data_uri(b"tiny")},
        {"id": "large", "image": data_uri(large), "audio": data_uri(large[1:], "audio/wav")},
        {"id": "percent", "image": "data:,a%20b"},
    ]
    found = plan_source(
        Source((Row(i, item) for i, item in enumerate(items)), find_members), store, files={FILE: LOCATION}
    )
    by_id = {item.id: item for item in found.items}
    assert asked == [{"img/a.png", "img/none.wav"}]
    assert by_id["file"].image == LOCATION.model_copy(update={"ref": FILE})
    assert by_id["member"].image == member.model_copy(update={"ref": "img/a.png"})
    assert found.outcome["member"] == ["missing_media"]
    assert base64.b64decode(by_id["small"].image.data) == b"tiny"
    assert base64.b64decode(by_id["percent"].image.data) == b"a b"
    assert media_bytes(store, by_id["large"].image) == large
    assert media_bytes(store, by_id["large"].audio) == large[1:]
    assert by_id["large"].audio.sha256 == hashlib.sha256(large[1:]).hexdigest()
    assert by_id["large"].image.ref == "data:image/png;base64"


def test_what_a_job_does_not_encode_is_kept_by_name_only() -> None:
    found = plan(
        {"id": "a", "text": "x", "audio": "gone.wav"},
        {"id": "b", "audio": "gone.wav"},
        encoders=Encoders(audio=None),
    )
    assert found.items[0].audio == MediaLocation(ref="gone.wav")
    assert found.outcome == {"a": [], "b": ["invalid_item"]}
    assert set(found.plan.schema["modalities"]) == {"text", "image"}


@pytest.mark.parametrize(("method", "fused"), [("concat", 384 + 1280), ("weighted", 384 + 1280), ("none", 0)])
def test_the_schema_is_fixed(method: str, fused: int) -> None:
    found = plan({"id": "a", "text": "x"}, encoders=Encoders(audio=None), fusion=Fusion(method=method))
    schema = found.plan.schema
    assert schema["dimensions"] == {"text": 384, "image": 1280, "fused": fused}
    assert schema["encoders"]["text"] == {"id": "all-minilm-l6-v2", "dimension": 384, "fitted": False}
    assert (schema["fitted"], schema["items"], schema["shard_size"]) == ([], 1, 4)
    assert schema["fusion"] == {"method": method, "weights": {}}
    assert json.loads(json.dumps(schema)) == schema


def test_fitted_encoders_are_listed() -> None:
    schema = plan({"id": "a", "text": "x"}, encoders=Encoders(text="word2vec")).plan.schema
    assert schema["fitted"] == ["text"]


@pytest.mark.parametrize(
    ("items", "limits", "encoders", "code"),
    [
        ([], Limits(), Encoders(), "empty_manifest"),
        ([{"id": str(i), "text": "x"} for i in range(4)], Limits(items=3), Encoders(), "too_many_items"),
        ([{"id": "a", "text": "x"}], Limits(), Encoders(text="no-such-encoder"), "unknown_encoder"),
    ],
)
def test_what_stops_the_whole_job(items: list[dict[str, Any]], limits: Limits, encoders: Encoders, code: str) -> None:
    with pytest.raises(JobError) as caught:
        plan(*items, limits=limits, encoders=encoders)
    assert caught.value.error_code == code


def test_planning_stops_when_it_is_told_to_and_when_storage_fails() -> None:
    class FullStore(MemoryStore):
        def put(self, *args: Any, **options: Any) -> Any:
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        plan_source(rows(*({"id": str(i), "text": "x"} for i in range(100))), FullStore())


def test_urls_are_left_to_the_workers_if_they_are_switched_on() -> None:
    good, bad = "https://example.org/a.png?key=secret", "https://example.org:22/a.png?key=secret"
    items = [{"id": "a", "image": good}, {"id": "b", "text": "x", "image": bad}, {"id": "c", "image": "a.png"}]
    found = plan(*items, fetching=Fetching(urls=True))
    whole = "no_usable_modality"
    assert found.outcome == {"a": [], "b": ["url_not_allowed"], "c": ["missing_media", whole]}
    assert found.items[0].image == MediaLocation(url=good, ref=good)
    assert "secret" not in found.failures[0].message


def test_an_inline_job_is_planned_like_any_other() -> None:
    store = MemoryStore()
    items: list[Any] = [{"id": "a", "text": "x"}, {"id": "b", "image": FILE}, {"id": "a", "text": "y"}]
    request = FeaturesRequest(items=items, shard_size=2)
    found = plan_inline(
        store,
        JOB_ID,
        request,
        catalog=load_catalog(),
        limits=Limits(),
        fetching=Fetching(),
        resolve_files=lambda ids: {FILE: LOCATION},
    )
    assert [(part.index, part.items) for part in found.slices] == [(0, 2)]
    assert [failure.code for failure in found.failures] == ["duplicate_id"]
    assert found.items_total == 3
