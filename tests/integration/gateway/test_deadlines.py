"""Who waits for an answer is told by the deadline, whatever hangs: Postgres or Redis that say nothing any more."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from pydantic import SecretStr

from services.gateway import auth
from services.gateway.deps import Services
from shared.db import Sessions
from shared.queues import Modality
from shared.storage.objects import ObjectStore
from shared.testing.models import add_trained_model
from tests.chaos.proxy import Proxy
from tests.integration.gateway.test_health import gateway_with

#: Scheduling on a busy machine; what hangs would hang for longer.
GRACE_SECONDS = 1.5


@contextmanager
def silenced(services: Services, setting: str) -> Iterator[httpx.Client]:
    """A gateway whose connections to a server are open, and nothing comes through them any more."""
    url = getattr(services.settings, setting).get_secret_value()
    port = int(re.findall(r":(\d+)/", url)[-1])
    with Proxy(port) as proxy:
        through = SecretStr(url.replace(f":{port}/", f":{proxy.port}/"))
        with gateway_with(services, **{setting: through}) as gateway:
            assert gateway.get("/readyz").status_code == 200
            proxy.silence()
            yield gateway
            proxy.heal()


def ask(gateway: httpx.Client, model: str, **headers: str) -> tuple[int, str, float]:
    """Status, code and seconds of a prediction that may take 0.3 s."""
    body = {"model": model, "items": [{"id": "a", "text": "x"}], "timeout_seconds": 0.3}
    began = time.monotonic()
    answer = gateway.post("/v1/predictions", json=body, headers=headers)
    return answer.status_code, answer.json()["error"]["code"], time.monotonic() - began


@pytest.mark.parametrize("setting", ["database_url", "redis_url"])
def test_a_prediction_does_not_outlast_its_deadline(
    setting: str, services: Services, sessions: Sessions, store: ObjectStore
) -> None:
    """Neither while its model is looked up nor while it is on its way to a worker."""
    model = add_trained_model(sessions, store, {Modality.TEXT: ("all-minilm-l6-v2", 384)})
    with silenced(services, setting) as gateway:
        status, code, seconds = ask(gateway, model)
    assert (status, code) == (504, "deadline_exceeded")
    assert seconds < 0.3 + GRACE_SECONDS


def test_a_key_is_not_looked_up_for_ever(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told that the gateway cannot know him just now."""
    monkeypatch.setattr(auth, "PATIENCE_SECONDS", 0.3)
    with silenced(services, "database_url") as gateway:
        status, code, seconds = ask(gateway, "model-x", authorization="Bearer sk-trivium-x")
    assert (status, code) == (503, "unavailable")
    assert seconds < 0.3 + GRACE_SECONDS
