"""A worker's side of its stage's lanes in Redis: taking requests, taking up lanes, sending answers."""

import time
from collections import deque
from collections.abc import Sequence

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.lanes.messages import KEEP_SECONDS, active_key, gone_key, lane_key
from shared.queues import Stage

#: How long one look lasts; as often, the lanes that nobody serves are looked at.
LOOK_SECONDS = 0.1

#: Redis answers within this, or counts as away.
PATIENCE_SECONDS = 2.0

#: A worker that took up a lane gets this long to load its model before another one helps.
LOADING_SECONDS = 10.0

#: A gateway process with so many unread answers reads them no more.
UNREAD = 10_000

# KEYS: the stage's lanes in use. ARGV: prefix of the lanes, seconds that they must have waited, seconds for loading,
# then the models that are served anyway. Answers a request of a lane that nobody empties, if there is one.
_TAKE_UP = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local served = {}
for i = 4, #ARGV do served[ARGV[i]] = true end
for _, model in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))) do
  if not served[model] then
    local request = redis.call('LPOP', ARGV[1] .. model)
    if request then
      redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[3])), model)
      return request
    end
    redis.call('ZREM', KEYS[1], model)
  end
end
return false
"""


# KEYS: the stage's lanes in use. ARGV: model.
_RELEASE = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'XX', string.format('%.6f', time[1] + time[2] / 1e6), ARGV[1])
"""


class Inbox:
    """The lanes of one stage. Thread-safe but for `take`. Every method raises RedisError or OSError in an outage."""

    def __init__(self, redis_url: str, stage: Stage):
        self._stage = stage
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=PATIENCE_SECONDS,
            socket_connect_timeout=PATIENCE_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._take_up = self._redis.register_script(_TAKE_UP)
        self._release = self._redis.register_script(_RELEASE)
        self._looked_at = 0.0
        self._turn = 0

    def take(self, models: Sequence[str], patience: float) -> bytes | str | None:
        """The next request for one of the loaded `models`; waits LOOK_SECONDS at most.

        Now and then it is one for another model instead, which waited for `patience` seconds and nobody took.
        """
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            prefix = lane_key(self._stage, "")
            keys = [active_key(self._stage)]
            request: bytes | None = self._take_up(keys=keys, args=[prefix, patience, LOADING_SECONDS, *models])
            if request is not None:
                return request
        if not models:
            time.sleep(LOOK_SECONDS)
            return None
        lanes = deque(lane_key(self._stage, model) for model in models)
        self._turn += 1
        lanes.rotate(self._turn)  # the first of the lanes that are not empty is served: each is first in its turn
        found = self._redis.blpop(list(lanes), timeout=LOOK_SECONDS)
        return None if found is None else found[1]

    def release(self, model: str) -> None:
        """The loading of a model that this worker took up is over: should it serve the lane no more, others may."""
        self._release(keys=[active_key(self._stage)], args=[model])

    def answer(self, request_id: str, reply_to: str, data: str) -> bool:
        """Sends an answer to a gateway process; gone with the process's other answers if it does not fetch them.

        False if nobody waits for more of it: the caller has gone, or the gateway.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.rpush(reply_to, data)
        pipeline.expire(reply_to, KEEP_SECONDS)
        pipeline.exists(gone_key(request_id))
        unread, _, gone = pipeline.execute()
        return not gone and unread <= UNREAD

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()
