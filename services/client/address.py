"""Where the gateway is and with which key: arguments, then the environment, then a local stack that runs."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from services.client.errors import ClientError
from shared.version import trivium_version

STACK_FILE = Path(".trivium") / "stack.json"


@dataclass(frozen=True)
class Address:
    """A gateway's base URL, without a slash at its end, and the API key, if one is used."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"User-Agent": f"trivium-python/{trivium_version()}", **key}


def find_address(base_url: str | None = None, api_key: str | None = None) -> Address:
    """The given URL and key, else TRIVIUM_URL and TRIVIUM_API_KEY, else the stack that `trivium up` runs here.

    A running stack is found by `.trivium/stack.json` in the working folder or one above it.
    Raises ClientError (`no_gateway`) when there is none of these.
    """
    url = base_url or os.environ.get("TRIVIUM_URL") or _local_stack()
    if url is None:
        raise ClientError(
            "No gateway is known: set TRIVIUM_URL (and TRIVIUM_API_KEY), or start a local one with `trivium up`.",
            code="no_gateway",
        )
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"{url} is no URL of a gateway; it begins with http:// or https://.", code="no_gateway")
    return Address(url.rstrip("/"), api_key or os.environ.get("TRIVIUM_API_KEY") or None)


def _local_stack() -> str | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        try:
            return str(json.loads((folder / STACK_FILE).read_text())["gateway_url"])
        except (OSError, ValueError, KeyError):
            continue
    return None
