"""Indexing and searching on the command line, against a gateway that is played."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client_gateway import JOB_ID, Gateway, Run, job

MODEL_ID = "model-01k9w0e1a4b7c2d5f8g3h6j9km"
FEATURES_ID = "job-01k9w0b0aaaaaaaaaaaaaaaaaa"


def result(id: str, score: float, modality: str = "image", **more: Any) -> dict[str, Any]:
    plain = {
        "label": ["cat", "pet"],
        "split": None,
        "metadata": {},
        "text": "words\nand more",
        "image_ref": f"{id}.png",
    }
    return {"id": id, "score": score, "modality": modality, "audio_ref": None, **plain, **more}


@pytest.fixture
def found(gateway: Gateway) -> Gateway:
    """A gateway that finds two items."""
    data = [result("a1", 0.91234), result("b2", 0.5, "text", text="long " * 100)]
    gateway.answers["POST /v1/search"] = httpx.Response(200, json={"index": JOB_ID, "data": data})
    return gateway


def test_an_index_of_a_feature_set(run: Run, gateway: Gateway) -> None:
    gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued", type="index"))
    made = run("index", FEATURES_ID, "--model", MODEL_ID, "--metadata", "project=x")
    assert (made.exit_code, made.stdout) == (0, f"{JOB_ID}\n"), made.output
    assert gateway.sent("/v1/jobs") == {
        "type": "index", "features": FEATURES_ID, "model": MODEL_ID, "metadata": {"project": "x"},
    }  # fmt: skip


def test_pictures_by_a_sound(run: Run, found: Gateway, tmp_path: Path) -> None:
    (tmp_path / "dog.wav").write_bytes(b"RIFF")
    options = "--find image -n 2 --label cat --label dog --split test --metadata year=2026 --metadata place=sea --exact"
    shown = run("search", JOB_ID, "--audio", str(tmp_path / "dog.wav"), *options.split())
    assert shown.exit_code == 0, shown.output
    assert found.sent("/v1/search") == {
        "index": JOB_ID, "query": {"audio": "data:;base64,UklGRg=="}, "modality": "image", "limit": 2, "exact": True,
        "filter": {"label": ["cat", "dog"], "split": "test", "metadata": {"year": 2026, "place": "sea"}},
    }  # fmt: skip
    lines = [line.split() for line in shown.stdout.splitlines() if "0." in line]
    assert lines[0] == ["a1", "0.912", "image", "cat,", "pet", "a1.png"]
    assert lines[1][:4] == ["b2", "0.500", "text", "cat,"]
    assert shown.stdout.rstrip().endswith("…")


def test_as_json(run: Run, found: Gateway) -> None:
    shown = run("search", JOB_ID, "--text", "a dog", "--json")
    assert [json.loads(line)["id"] for line in shown.stdout.splitlines()] == ["a1", "b2"]
    assert found.sent("/v1/search") == {
        "index": JOB_ID,
        "query": {"text": "a dog"},
        "limit": 10,
        "filter": {},
        "exact": False,
    }


@pytest.mark.parametrize("options", ["", "--limit 0 --text x", "--find smell --text x"])
def test_wrong_usage(run: Run, gateway: Gateway, options: str) -> None:
    assert run("search", JOB_ID, *options.split()).exit_code == 2
    assert not gateway.requests
