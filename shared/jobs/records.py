"""What passes between the engine and the workers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.queues import Modality, Stage

#: Deaths of a worker on the same item before the item is given up.
STRIKES = 2


@dataclass(frozen=True)
class Lease:
    """A shard in a worker's hands."""

    shard_id: int
    token: UUID
    job_id: str
    tenant: str
    stage: Stage
    index: int
    items: int
    cost: float
    spec: dict[str, Any]
    isolated: bool
    strikes: dict[int, int]
    request: dict[str, Any]
    schema: dict[str, Any]
    protocol: int = 1
    checkpoints: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def condemned(self) -> set[int]:
        """Items (index in the job) that killed a worker too often to be tried again."""
        return {index for index, deaths in self.strikes.items() if deaths >= STRIKES}

    @property
    def suspects(self) -> set[int]:
        """Items that a worker died on before: they are tried first."""
        return set(self.strikes) - self.condemned


@dataclass(frozen=True)
class ItemFailure:
    """One modality of one item that could not be used (`modality` None: the whole item)."""

    item_index: int
    item_id: str
    modality: Modality | None
    code: str
    message: str


@dataclass(frozen=True)
class StoredObject:
    """An object that was written, and what is in it."""

    key: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class NewModel:
    """A model that a shard made, for the registry. A fine-tuned one has no modality of its own."""

    id: str
    kind: str
    modality: Modality | None
    dimension: int
    fingerprint: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class CachedVectors:
    """Vectors for the feature cache: row i of the segment belongs to `content_sha256[i]`."""

    segment: StoredObject
    fingerprint: str
    content_sha256: Sequence[str]


@dataclass(frozen=True)
class Finished:
    """What a worker made of a shard."""

    lease: Lease
    stored: StoredObject | None
    items_done: int = 0
    items_cached: int = 0
    failures: Sequence[ItemFailure] = ()
    succeeded: int = 0
    partial: int = 0
    failed: int = 0
    rows: int = 0
    schema_update: dict[str, Any] = field(default_factory=dict)
    model: NewModel | None = None
    cached: CachedVectors | None = None


@dataclass(frozen=True)
class Renewal:
    """What became of the leases that were renewed."""

    kept: frozenset[int]
    cancelled: frozenset[int]


@dataclass(frozen=True)
class Slice:
    """A slice of items in object storage: which object, how many items, how many of each modality."""

    index: int
    stored: StoredObject
    items: int
    modalities: dict[Modality, int]


@dataclass(frozen=True)
class Plan:
    """What planning found: the slices, the schema fixed for the job, and the items unusable from the start.

    `input_bytes` is what lies under a prefix; None: the size of the input was known before.
    """

    slices: Sequence[Slice]
    schema: dict[str, Any]
    items_total: int
    failures: Iterable[ItemFailure] = ()
    failure_count: int = 0
    input_bytes: int | None = None
