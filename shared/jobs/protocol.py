"""Protocols: what a worker must understand to run a shard, as a number, so that two releases can work side by side.

A shard says which protocol it needs, and a worker claims none above its own: during a rolling upgrade new shards wait
for new workers. To change what a shard's spec says, or what a stage leaves for the next one, add a line to `ADDED` and
go on understanding the lower protocols (`Lease.protocol` says which one a shard has; what was laid out keeps its own).
Workers of the first schema claim whatever is there, so the first line must not come before they are gone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shared.fine_tuning import TrainEncoder, reads_text
from shared.jobs.encoders import named_models
from shared.queues import Modality, Stage
from shared.schemas import JobType


class Added(NamedTuple):
    """What came after protocol 1: the shards of `stage` in jobs whose request `asks` need `protocol`."""

    protocol: int
    stage: Stage
    asks: Callable[[Mapping[str, Any]], bool]


def _has_other_encoders(request: Mapping[str, Any]) -> bool:
    """Encoders that are named by a model's id, or that the job itself may train."""
    return request.get("type") == JobType.FINE_TUNE or bool(named_models(request.get("encoders") or {}))


def _is_fused_otherwise(request: Mapping[str, Any]) -> bool:
    """By a trained model, or not at all because training or prediction comes after."""
    is_new = request.get("type", JobType.FEATURES) != JobType.FEATURES
    return is_new or (request.get("fusion") or {}).get("model") is not None


def _changes_pictures(request: Mapping[str, Any]) -> bool:
    """Words are drawn on pictures before they are encoded, or a border is learned."""
    drawn = (request.get("preprocessing") or {}).get("image") or {}
    return "drawn_text" in drawn or request.get("train_encoder") == TrainEncoder.BORDER


def _is_a_batch(request: Mapping[str, Any]) -> bool:
    """Its manifest is a file of requests."""
    return "batch" in request


def _is_index(request: Mapping[str, Any]) -> bool:
    return request.get("type") == JobType.INDEX


ADDED: tuple[Added, ...] = (
    *(Added(3, stage, _changes_pictures) for stage in (Stage.PLAN, Stage.FIT, Stage.IMAGE)),
    *(Added(3, stage, reads_text) for stage in (Stage.PLAN, Stage.FUSION, Stage.FINE_TUNE)),
    Added(2, Stage.PLAN, _is_fused_otherwise),
    Added(2, Stage.FUSION, _is_fused_otherwise),
    Added(3, Stage.PLAN, _is_a_batch),
    *(Added(2, stage, _has_other_encoders) for stage in (Stage.PLAN, Stage.FIT, *(Stage(m.value) for m in Modality))),
    *(Added(3, stage, _is_index) for stage in (Stage.PLAN, Stage.FUSION, Stage.INDEX)),
)

#: The highest protocol that this release understands.
PROTOCOL = max((added.protocol for added in ADDED), default=1)


def protocol_of(stage: Stage, request: Mapping[str, Any]) -> int:
    """The protocol that a new shard of this stage needs."""
    return max((added.protocol for added in ADDED if added.stage is stage and added.asks(request)), default=1)
