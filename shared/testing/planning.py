"""Planning without a database: a source goes in; its items and failures come out, read back from the slices."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from shared.catalog import load_catalog
from shared.items import MediaLocation, PlannedItem
from shared.jobs.records import ItemFailure, Plan
from shared.planning import Place, PlanRequest, Source, plan_rows
from shared.schemas import Encoders, Fusion
from shared.settings import Fetching, Limits
from shared.storage.objects import ObjectStore

JOB_ID = "job-01k9w0c3v8e6m5j2k1x7r4t9qz"
TOKEN = UUID(int=7)


@dataclass(frozen=True)
class Planned:
    """A plan and what it refers to."""

    plan: Plan
    items: list[PlannedItem]
    failures: list[ItemFailure]

    @property
    def outcome(self) -> dict[str, list[str]]:
        """The codes of what went wrong, by item id; empty for items without fault."""
        codes: dict[str, list[str]] = {item.id: [] for item in self.items}
        for failure in self.failures:
            codes.setdefault(failure.item_id, []).append(failure.code)
        return codes


def plan_source(
    source: Source,
    store: ObjectStore,
    *,
    shard_size: int = 4,
    limits: Limits | None = None,
    fetching: Fetching | None = None,
    files: Mapping[str, MediaLocation] | None = None,
    encoders: Encoders | None = None,
    fusion: Fusion | None = None,
) -> Planned:
    """Plans a source; `files` are those that the tenant has."""
    known = files or {}
    plan = plan_rows(
        source,
        PlanRequest(encoders=encoders or Encoders(), fusion=fusion or Fusion(), shard_size=shard_size),
        Place(store, JOB_ID, TOKEN),
        catalog=load_catalog(),
        limits=limits or Limits(),
        fetching=fetching or Fetching(),
        resolve_files=lambda ids: {id: known[id] for id in ids if id in known},
    )
    return Planned(plan, read_items(store, plan), list(plan.failures))


def read_items(store: ObjectStore, plan: Plan) -> list[PlannedItem]:
    """The items of a plan, in the order of its slices."""
    lines = [line for part in plan.slices for line in store.get(part.stored.key).splitlines()]
    return [PlannedItem.model_validate(json.loads(line)) for line in lines]


def media_bytes(store: ObjectStore, location: MediaLocation | None) -> bytes:
    """The bytes at a location that is a range of an object."""
    assert location is not None
    assert location.key is not None
    return store.get(location.key, offset=location.offset, length=location.size, bucket=location.bucket)
