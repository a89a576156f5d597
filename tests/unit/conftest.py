"""Fixtures of the unit tests."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.unit.client_gateway import Gateway, Run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes in one thread: small models, and threads that wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gateway() -> Gateway:
    """A gateway that is played; it answers what a test lays into its `answers`."""
    return Gateway()


@pytest.fixture
def run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `trivium` with these arguments against the played gateway."""
    from services.client.cli import app
    from services.client.commands.options import Connection

    for name in ("TRIVIUM_URL", "TRIVIUM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    connection = Connection("http://gateway", transport=httpx.MockTransport(gateway))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, arguments, obj=connection)

    return run
