"""Features as one file or in parts, and the errors of items: in the items' order, checked, and only when complete."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from services.gateway.deps import Services
from shared.queues import Queue
from shared.storage.objects import ObjectStore
from tests.integration.gateway.conftest import DIMENSION, Pools, vector_of

MakeRequest = Callable[..., dict[str, Any]]

FAULTY = {1, 6}


@pytest.fixture(scope="module")
def done(client: httpx.Client, pools: Pools) -> str:
    """A job of ten items in slices of four, of which two failed."""
    items = [
        {"id": f"item-{i}", "text": f"text {i}", "label": ["a", "b"][: i % 3], "metadata": {"n": i}, "split": "train"}
        for i in range(10)
    ]
    encoders = {"text": "all-minilm-l6-v2", "image": None, "audio": None}
    body = {"items": items, "encoders": encoders, "shard_size": 4}
    id: str = client.post("/v1/jobs", json=body).json()["id"]
    pools.faulty = FAULTY
    pools.run()
    pools.faulty = set()
    assert client.get(f"/v1/jobs/{id}").json()["status"] == "succeeded"
    return id


@pytest.fixture(scope="module")
def indices() -> list[int]:
    """The items that have a row."""
    return [i for i in range(10) if i not in FAULTY]


def test_json_lines_come_in_the_order_of_the_items(client: httpx.Client, done: str, indices: list[int]) -> None:
    answer = client.get(f"/v1/jobs/{done}/results")
    assert answer.headers["content-type"] == "application/x-ndjson"
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["id"] for row in rows] == [f"item-{i}" for i in indices]
    for row, index in zip(rows, indices, strict=True):
        assert np.float32(row["text_vector"]).tolist() == vector_of(index)
        assert row["audio_vector"] is None
        assert row["label"] == ["a", "b"][: index % 3]
        assert (row["metadata"], row["split"], row["target"]) == ({"n": index}, "train", None)


def test_parquet_is_one_file_with_the_parts_schema(client: httpx.Client, done: str, indices: list[int]) -> None:
    answer = client.get(f"/v1/jobs/{done}/results", params={"format": "parquet"})
    assert answer.headers["content-disposition"] == f'attachment; filename="{done}.parquet"'
    file = pq.ParquetFile(io.BytesIO(answer.content))
    assert file.num_row_groups == 3
    table = file.read()
    assert table["id"].to_pylist() == [f"item-{i}" for i in indices]
    assert table["text_vector"].to_pylist() == [vector_of(i) for i in indices]
    assert table.schema.field("text_vector").type.list_size == DIMENSION
    assert table["audio_vector"].null_count == len(indices)
    assert json.loads(table.schema.metadata[b"trivium"]) == {"job": done}


def test_npz_holds_arrays(client: httpx.Client, done: str, indices: list[int]) -> None:
    answer = client.get(f"/v1/jobs/{done}/results", params={"format": "npz"})
    arrays = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert arrays["id"].tolist() == [f"item-{i}" for i in indices]
    assert arrays["text_vector"].dtype == np.float32
    assert arrays["text_vector"].tolist() == [vector_of(i) for i in indices]
    assert np.isnan(arrays["audio_vector"]).all()
    assert arrays["audio_vector"].shape == (len(indices), DIMENSION)
    assert [json.loads(label) for label in arrays["label"]] == [["a", "b"][: i % 3] for i in indices]


def test_npz_has_a_limit(client: httpx.Client, done: str, services: Services) -> None:
    limits = services.settings.limits
    before, limits.npz_bytes = limits.npz_bytes, 100
    try:
        answer = client.get(f"/v1/jobs/{done}/results", params={"format": "npz"})
    finally:
        limits.npz_bytes = before
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "results_too_large")


def test_parts_have_links_and_hashes(client: httpx.Client, done: str) -> None:
    parts = client.get(f"/v1/jobs/{done}/results/parts").json()["data"]
    assert [(part["index"], part["rows"]) for part in parts] == [(0, 3), (1, 3), (2, 2)]
    for part in parts:
        content = httpx.get(part["url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part["bytes"], part["sha256"])
    page = client.get(f"/v1/jobs/{done}/results/parts", params={"limit": 2}).json()
    assert (page["has_more"], page["last_id"]) == (True, "1")
    rest = client.get(f"/v1/jobs/{done}/results/parts", params={"after": page["last_id"]}).json()
    assert [part["index"] for part in rest["data"]] == [2]


def test_errors_of_items_go_page_by_page(client: httpx.Client, done: str) -> None:
    errors = client.get(f"/v1/jobs/{done}/errors").json()["data"]
    assert [(e["item_index"], e["item_id"], e["modality"], e["code"]) for e in errors] == [
        (1, "item-1", "text", "corrupt_media"),
        (6, "item-6", "text", "corrupt_media"),
    ]
    page = client.get(f"/v1/jobs/{done}/errors", params={"limit": 1}).json()
    assert (page["data"], page["has_more"]) == (errors[:1], True)
    rest = client.get(f"/v1/jobs/{done}/errors", params={"after": page["last_id"]}).json()
    assert (rest["data"], rest["has_more"]) == (errors[1:], False)
    wrong = client.get(f"/v1/jobs/{done}/errors", params={"after": "1-smell"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "after")


def test_results_wait_for_the_end(client: httpx.Client, features_request: MakeRequest, pools: Pools) -> None:
    id = client.post("/v1/jobs", json=features_request(4)).json()["id"]
    pools.run(Queue.TEXT)
    for path in ("results", "results/parts"):
        answer = client.get(f"/v1/jobs/{id}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_finished")
    pools.run(Queue.FUSION)
    assert client.get(f"/v1/jobs/{id}/results").status_code == 200


@pytest.fixture
def damaged(client: httpx.Client, done: str, store: ObjectStore) -> Iterator[int]:
    """The index of a part whose object is not what was written."""
    part = client.get(f"/v1/jobs/{done}/results/parts").json()["data"][0]
    content = store.get(part["key"])
    store.put(part["key"], content[:-1] + b"?")
    yield part["index"]
    store.put(part["key"], content)


@pytest.mark.parametrize("format", ["jsonl", "parquet", "npz"])
def test_a_damaged_part_is_not_handed_out(client: httpx.Client, done: str, damaged: int, format: str) -> None:
    answer = client.get(f"/v1/jobs/{done}/results", params={"format": format})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_part")
