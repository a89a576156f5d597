"""Fixtures of the unit tests."""

from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.unit.client_gateway import Gateway, Run


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
