"""What several commands share: the client they use, options, and how `key=value` is read."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from services.client.client import Client

#: Makes the client from the global options; every command finds it in its context.
Connect = Callable[[], Client]

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, such as job-01k9w0c3v8e6m5j2k1x7r4t9qz.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts: one object a line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def connect(context: typer.Context) -> Client:
    """The client of this command; use it as a context manager."""
    make: Connect = context.obj
    return make()


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """`["a=1", "b=2"]` as a mapping. Raises typer.BadParameter for what has no `=`."""
    found: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{value!r} is not of the form KEY=VALUE", param_hint=option)
        found[key] = rest
    return found
