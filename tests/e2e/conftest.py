"""The whole platform as processes on this machine, once for all end-to-end tests."""

import json
import os
from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from services.client.client import Client

HASH_DIMENSION = 16


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers, gateway, dispatcher and one worker a pool; the deterministic encoders are in the catalogue."""
    folder = tmp_path_factory.mktemp("stack")
    encoders = folder / "encoders.json"
    hashing = [
        {"id": f"hash-{m}", "modality": m, "dimension": HASH_DIMENSION, "loader": "hashing"}
        for m in ("text", "image", "audio")
    ]
    encoders.write_text(json.dumps(hashing))
    environment = {
        "TRIVIUM_ENCODERS_FILE": str(encoders), "TRIVIUM_PRECISION": "fp32", "HF_HUB_OFFLINE": "1",
        "TRIVIUM_CHECKPOINT_SECONDS": "0",
    }  # fmt: skip
    with Stack(folder / "data", durable=False, environment=environment) as running:
        running.wait_ready()
        running.wait_workers({"text": 1, "image": 1, "audio": 1, "fusion": 1})
        yield running


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    """A client of the platform."""
    os.environ.pop("TRIVIUM_API_KEY", None)
    with Client(stack.gateway_url) as connected:
        yield connected
