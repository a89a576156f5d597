"""Protocols: what a worker must understand to run a shard, as a number, so that two releases can work side by side.

A shard says which protocol it needs, and a worker claims none above its own: during a rolling upgrade new shards wait
for new workers. To change what a shard's spec says, or what a stage leaves for the next one, add a line to `ADDED` and
go on understanding the lower protocols (`Lease.protocol` says which one a shard has; what was laid out keeps its own).
Workers of the first schema claim whatever is there, so the first line must not come before they are gone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shared.queues import Stage
from shared.schemas import JobType


class Added(NamedTuple):
    """What came after protocol 1: the shards of `stage` in jobs whose request `asks` need `protocol`."""

    protocol: int
    stage: Stage
    asks: Callable[[Mapping[str, Any]], bool]


ADDED: tuple[Added, ...] = (Added(2, Stage.PLAN, lambda request: request["type"] != JobType.FEATURES),)

#: The highest protocol that this release understands.
PROTOCOL = max((added.protocol for added in ADDED), default=1)


def protocol_of(stage: Stage, request: Mapping[str, Any]) -> int:
    """The protocol that a new shard of this stage needs."""
    return max((added.protocol for added in ADDED if added.stage is stage and added.asks(request)), default=1)
