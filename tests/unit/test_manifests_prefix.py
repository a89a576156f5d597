"""S3 prefixes: what lies under the folder, and nothing beside it."""

import json
from typing import Any

import pytest

from services.dispatcher.manifests.detection import open_prefix
from services.dispatcher.manifests.reading import Reading
from shared.errors import InvalidRequestError, JobError
from shared.settings import Limits
from shared.storage.imports import allowed_prefix
from shared.testing.memory_store import MemoryStore
from shared.testing.planning import JOB_ID, TOKEN, Planned, media_bytes, plan_source

FOLDER = "imports/default/set/"


def plan(store: MemoryStore, bucket: str = "memory", folder: str = FOLDER, **limits: Any) -> Planned:
    reading = Reading(store, Limits(**limits), JOB_ID, TOKEN)
    return plan_source(open_prefix(reading, bucket, folder), store, limits=reading.limits)


def test_a_manifest_names_objects_under_its_folder_only() -> None:
    store = MemoryStore()
    store.put("imports/default/other/b.png", b"outside")
    store.put("imports/default/setting.png", b"outside")
    store.put(FOLDER + "img/a.png", b"inside")
    items = [
        {"id": "1", "image": "img/a.png"},
        {"id": "2", "image": "../other/b.png", "text": "x"},
        {"id": "3", "image": "imports/default/other/b.png", "text": "x"},
        {"id": "4", "image": "ting.png", "text": "x"},
    ]
    store.put(FOLDER + "manifest.jsonl", "\n".join(map(json.dumps, items)).encode())
    found = plan(store)
    missing = ["missing_media"]
    assert found.outcome == {"1": [], "2": missing, "3": missing, "4": missing}
    assert media_bytes(store, found.items[0].image) == b"inside"


def test_without_a_manifest_objects_with_one_stem_are_one_item() -> None:
    store = MemoryStore()
    for number in range(100):
        store.put(f"{FOLDER}{number:03d}.txt", f"text {number}".encode(), bucket="theirs")
        store.put(f"{FOLDER}{number:03d}.wav", f"sound {number}".encode(), bucket="theirs")
    store.put(f"{FOLDER}000.json", b'{"label": "x"}', bucket="theirs")
    found = plan(store, "theirs")
    assert [item.id for item in found.items] == [f"{number:03d}" for number in range(100)]
    for number, item in enumerate(found.items):
        assert item.text == f"text {number}"
        assert item.audio is not None
        assert item.audio.bucket == "theirs"
        assert media_bytes(store, item.audio) == f"sound {number}".encode()
    assert found.items[0].label == ["x"]


def test_a_text_above_the_limit_is_not_fetched() -> None:
    class CountingStore(MemoryStore):
        def get(self, key: str, **options: Any) -> bytes:
            assert not key.endswith("long.txt")
            return super().get(key, **options)

    store = CountingStore()
    store.put(FOLDER + "long.txt", b"x" * 101)
    store.put(FOLDER + "short.txt", b"x")
    assert plan(store, text_bytes=100).outcome == {
        "long": ["text_too_large", "no_usable_modality"],
        "short": [],
    }


def test_an_empty_prefix_and_too_many_objects_stop_the_job() -> None:
    store = MemoryStore()
    with pytest.raises(JobError) as caught:
        plan(store)
    assert caught.value.error_code == "prefix_not_found"
    for number in range(5):
        store.put(f"{FOLDER}{number}.txt", b"x")
    with pytest.raises(JobError) as caught:
        plan(store, archive_members=4)
    assert caught.value.error_code == "archive_too_large"


@pytest.mark.parametrize(
    ("prefix", "place"),
    [
        ("s3://trivium/imports/acme/", ("trivium", "imports/acme/")),
        ("s3://trivium/imports/acme/2026/11", ("trivium", "imports/acme/2026/11/")),
        ("s3://acme-data/", ("acme-data", "")),
        ("s3://acme-data/x/", ("acme-data", "x/")),
        ("s3://common/acme/x/", ("common", "acme/x/")),
    ],
)
def test_prefixes_that_a_tenant_may_read(prefix: str, place: tuple[str, str]) -> None:
    assert allow(prefix) == place


@pytest.mark.parametrize(
    "prefix",
    [
        "s3://trivium/",
        "s3://trivium/blobs/acme/",
        "s3://trivium/imports/",
        "s3://trivium/imports/acme2/",
        "s3://trivium/imports/other/",
        "s3://trivium/imports/acme/../other/",
        "s3://trivium/imports/acme/./x/",
        "s3://trivium/imports/acme//x/",
        "s3://other-data/",
        "s3://common/",
        "s3://common/acme2/",
    ],
)
def test_prefixes_that_a_tenant_may_not_read(prefix: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        allow(prefix)
    assert caught.value.error_code == "prefix_not_allowed"


def allow(prefix: str) -> tuple[str, str]:
    # Naming the platform's own bucket as a bucket to import from must not open the other tenants' objects.
    buckets = ["{tenant}-data", "common/{tenant}", "trivium"]
    return allowed_prefix(prefix, tenant="acme", own_bucket="trivium", import_buckets=buckets)
