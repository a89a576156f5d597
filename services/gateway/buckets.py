"""How fast requests may come: a bucket of tokens for each caller, shared by all gateway processes through Redis.

The generic cell rate algorithm (ITU-T I.371) keeps one number of a bucket, the time at which it will be full again.
Redis is never waited for: while it is away or slow, each process keeps buckets of its own.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.observability import get_logger

log = get_logger(__name__)

#: Redis must answer within this; if it does not, it is not asked again for a while.
PATIENCE_SECONDS, PAUSE_SECONDS = 0.25, 5.0

#: Buckets that a process keeps while Redis is away.
_BUCKETS = 10_000

_PREFIX = "trivium:rate:"

# For each key a step between tokens (seconds), the bucket's size and the tokens wanted (0: only look whether there is
# one); answers how long to wait for them and how long until the bucket is full.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local levels = {}
for i, key in ipairs(KEYS) do
  local step, size, wanted = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local full_at = math.max(tonumber(redis.call('GET', key) or 0), now)
  local wait = full_at - now - step * (size - math.max(wanted, 1))
  if wait <= 0 and wanted > 0 then
    full_at = full_at + step * wanted
    redis.call('SET', key, string.format('%.6f', full_at), 'PX', math.ceil((full_at - now) * 1000))
  end
  levels[i] = {string.format('%.6f', wait), string.format('%.6f', full_at - now)}
end
return levels
"""


@dataclass(frozen=True)
class Rate:
    """Tokens a second, and how many a full bucket holds."""

    per_second: float
    size: int


@dataclass(frozen=True)
class Ask:
    """Tokens wanted of a bucket; with 0 it is only asked whether there is one."""

    bucket: str
    rate: Rate
    tokens: int = 1


@dataclass(frozen=True)
class Level:
    """What was answered: seconds to wait for the tokens (none: they were given), and until the bucket is full."""

    rate: Rate
    wait_seconds: float
    full_seconds: float

    @property
    def refused(self) -> bool:
        """True if the tokens were not there."""
        return self.wait_seconds > 0

    @property
    def left(self) -> int:
        """Tokens that are left."""
        # A little more than floor: times have six digits behind the point.
        return max(0, math.floor(self.rate.size - self.full_seconds * self.rate.per_second + 1e-3))


class Buckets:
    """The buckets of all callers. Use it in one event loop."""

    def __init__(self, redis_url: str):
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=PATIENCE_SECONDS,
            socket_connect_timeout=PATIENCE_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._script = self._redis.register_script(_SCRIPT)
        self._own = OwnBuckets()
        self._away_until = 0.0

    async def take(self, *asks: Ask) -> list[Level]:
        """Takes tokens, of each bucket all that are wanted or none."""
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return await self._shared(asks)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = time.monotonic() + PAUSE_SECONDS
                log.warning("rates are limited by each process alone", error=str(error) or type(error).__name__)
        return self._own.take(asks)

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _shared(self, asks: Sequence[Ask]) -> list[Level]:
        keys = [_PREFIX + ask.bucket for ask in asks]
        arguments = [x for ask in asks for x in (1 / ask.rate.per_second, ask.rate.size, ask.tokens)]
        found = await self._script(keys=keys, args=arguments)
        return [Level(ask.rate, float(wait), float(full)) for ask, (wait, full) in zip(asks, found, strict=True)]


class OwnBuckets:
    """The buckets of this process alone: what the script does, in memory."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}

    def take(self, asks: Sequence[Ask]) -> list[Level]:
        """Takes tokens, of each bucket all that are wanted or none."""
        now = time.monotonic()
        if len(self._full_at) > _BUCKETS:
            self._full_at = {bucket: full_at for bucket, full_at in self._full_at.items() if full_at > now}
        return [self._take(ask, now) for ask in asks]

    def _take(self, ask: Ask, now: float) -> Level:
        step = 1 / ask.rate.per_second
        full_at = max(self._full_at.get(ask.bucket, now), now)
        wait = full_at - now - step * (ask.rate.size - max(ask.tokens, 1))
        if wait <= 0 and ask.tokens:
            full_at += step * ask.tokens
            self._full_at[ask.bucket] = full_at
        return Level(ask.rate, wait, full_at - now)
