"""What several commands share: the connection, options, and how `key=value` is read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer

from services.client.client import Client
from services.client.retries import Retries

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, such as job-01k9w0c3v8e6m5j2k1x7r4t9qz.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, one object a line.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be given several times.")]

#: Someone waits at the terminal: a gateway that is away is given up after about three seconds.
_BRIEF = Retries(limit=3)


@dataclass(frozen=True)
class Connection:
    """The global options, in the context of every command. `transport` replaces the network, for tests."""

    url: str | None = None
    api_key: str | None = None
    transport: httpx.MockTransport | None = None

    def client(self, retries: Retries = _BRIEF) -> Client:
        """A client for one command; use it as a context manager."""
        return Client(self.url, self.api_key, transport=self.transport, retries=retries)


def connection(context: typer.Context) -> Connection:
    """The connection that the global options describe."""
    found: Connection = context.obj
    return found


def pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """`["a=1", "b=2"]` as a mapping. Raises typer.BadParameter for what is not of the form KEY=VALUE."""
    found: dict[str, str] = {}
    for value in values or ():
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{value!r} is not of the form KEY=VALUE", param_hint=option)
        found[key] = rest
    return found


def json_pairs(values: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Pairs whose values are JSON, or words without quotes. Raises typer.BadParameter."""
    return {name: _value(text) for name, text in pairs(values, option).items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
