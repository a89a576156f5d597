"""When a request is sent again, and after how long."""

import random
from dataclasses import dataclass

import httpx

from services.client.errors import retry_after

#: Answers that say "later": the gateway, or a proxy before it, did not take the request.
_LATER = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """Exponential backoff with equal jitter (Brooker, "Exponential Backoff And Jitter", 2015); a Retry-After rules.

    Times in seconds. With the defaults a request is given up about 20 s after its first failure.
    """

    limit: int = 6
    base: float = 0.5
    ceiling: float = 8.0
    longest_retry_after: float = 120.0

    def pause(self, attempt: int, response: httpx.Response | None = None) -> float | None:
        """Seconds before the next attempt after the `attempt`-th (from 1) failed; None when that was the last.

        `response` is the answer that failed, None when the connection did.
        """
        if attempt > self.limit or (response is not None and response.status_code not in _LATER):
            return None
        asked = None if response is None else retry_after(response)
        if asked is not None:
            return float(asked) if asked <= self.longest_retry_after else None
        ceiling = min(self.ceiling, self.base * 2.0 ** (attempt - 1))
        return random.uniform(ceiling / 2, ceiling)
