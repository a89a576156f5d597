"""The whole platform as processes on this machine, once for all end-to-end tests."""

import json
import os
from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from services.client.client import Client
from shared.testing.tiny import tiny_language_model

HASH_DIMENSION = 16


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers, gateway, dispatcher and one worker a pool; deterministic encoders and a tiny language model are in the
    catalogue."""
    folder = tmp_path_factory.mktemp("stack")
    encoders = folder / "encoders.json"
    hashing = [
        {"id": f"hash-{m}", "modality": m, "dimension": HASH_DIMENSION, "loader": "hashing"}
        for m in ("text", "image", "audio")
    ]
    encoders.write_text(json.dumps(hashing))
    language_models = folder / "language_models.json"
    language_models.write_text(json.dumps([tiny_language_model(folder / "tiny").model_dump()]))
    environment = {
        "TRIVIUM_ENCODERS_FILE": str(encoders), "TRIVIUM_LANGUAGE_MODELS_FILE": str(language_models),
        "TRIVIUM_PRECISION": "fp32", "HF_HUB_OFFLINE": "1", "TRIVIUM_CHECKPOINT_SECONDS": "0",
    }  # fmt: skip
    with Stack(folder / "data", durable=False, replicas={"generate": 1}, environment=environment) as running:
        running.wait_ready()
        running.wait_workers({"text": 1, "image": 1, "audio": 1, "fusion": 1})
        yield running


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    """A client of the platform."""
    os.environ.pop("TRIVIUM_API_KEY", None)
    with Client(stack.gateway_url) as connected:
        yield connected
