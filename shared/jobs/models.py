"""The tables. Postgres is the one truth about every job; everything else is a hint or an object that a row names."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db import Base
from shared.jobs.states import ShardState
from shared.schemas import JobStatus

_NOW = func.clock_timestamp()


class ApiKey(Base):
    """An API key: only its hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text, default="")
    key_sha256: Mapped[str] = mapped_column(Text, unique=True)
    scope: Mapped[str] = mapped_column(Text, default="user", doc="user or admin; admins manage keys")
    hint: Mapped[str] = mapped_column(Text, doc="the last characters, to tell keys apart")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    last_used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Blob(Base):
    """Bytes of a tenant, once per content; lives as long as a file names it."""

    __tablename__ = "blobs"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, unique=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    content_type: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class File(Base):
    """An uploaded file: a name for a blob."""

    __tablename__ = "files"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
        Index("files_of_tenant", "tenant", "id"),
        Index("files_of_blob", "tenant", "sha256"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text, default="user_data")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Job(Base):
    """One request and how far it is."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("tenant", "idempotency_key", name="jobs_idempotency"),
        Index("jobs_of_tenant", "tenant", "id"),
        Index("jobs_metadata", "metadata", postgresql_using="gin"),
        Index("jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index(
            "jobs_unpublished", "finished_at", postgresql_where=text("status = 'succeeded' AND published_at IS NULL")
        ),
        Index("jobs_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("jobs_unfinished", "tenant", "created_at", postgresql_where=text("finished_at IS NULL")),
        Index(
            "jobs_with_deadline",
            "deadline_at",
            postgresql_where=text("finished_at IS NULL AND deadline_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, default=JobStatus.QUEUED)
    priority: Mapped[int] = mapped_column(SmallInteger, default=0)
    request: Mapped[dict[str, Any]] = mapped_column(JSONB, doc="as validated, without inline items")
    schema: Mapped[dict[str, Any]] = mapped_column(
        JSONB, default=dict, doc="fixed at plan: dimensions, encoders, shards"
    )
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSONB, default=dict)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    request_sha256: Mapped[str] = mapped_column(Text)
    input_bytes: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), doc="what it was given to read; of a prefix, once it is planned"
    )
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    deadline_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), doc="it fails unless ended by then")
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    cancel_requested_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), doc="hidden; the sweep removes it")
    shards_open: Mapped[int] = mapped_column(Integer, default=0)
    items_total: Mapped[int] = mapped_column(BigInteger, default=0)
    items_succeeded: Mapped[int] = mapped_column(BigInteger, default=0)
    items_partial: Mapped[int] = mapped_column(BigInteger, default=0)
    items_failed: Mapped[int] = mapped_column(BigInteger, default=0)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    published_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), doc="when the feature set's manifest.json was written"
    )


class JobFile(Base):
    """A file that a job reads; it cannot be deleted while the job runs."""

    __tablename__ = "job_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    file_id: Mapped[str] = mapped_column(Text, primary_key=True, index=True)


class JobSource(Base):
    """A feature set or a model that a job needs; neither can be deleted while the job runs."""

    __tablename__ = "job_sources"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    source_id: Mapped[str] = mapped_column(Text, primary_key=True, index=True, doc="a job's or a model's id")


class Batch(Base):
    """A job that answers a file of requests in OpenAI's shape, and the files of its answers once they are written."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_of_tenant", "tenant", "id"),
        Index("batches_open", "input_file_id", postgresql_where=text("finalized_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    input_file_id: Mapped[str] = mapped_column(Text)
    output_file_id: Mapped[str | None] = mapped_column(Text)
    error_file_id: Mapped[str | None] = mapped_column(Text)
    summary: Mapped[dict[str, int]] = mapped_column(
        JSONB, server_default=text("'{}'"), default=dict, doc="how its requests ended, and their tokens"
    )
    finalized_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), doc="when its files were written")


class JobStage(Base):
    """Counters of one stage of one job, kept in the transactions that end its shards."""

    __tablename__ = "job_stages"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(Text, primary_key=True)
    shards_total: Mapped[int] = mapped_column(Integer, default=0)
    shards_done: Mapped[int] = mapped_column(Integer, default=0)
    shards_failed: Mapped[int] = mapped_column(Integer, default=0)
    items_total: Mapped[int] = mapped_column(BigInteger, default=0)
    items_done: Mapped[int] = mapped_column(BigInteger, default=0)
    items_cached: Mapped[int] = mapped_column(BigInteger, default=0)
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Shard(Base):
    """A slice of a job's items in one stage: what is queued, leased and retried."""

    __tablename__ = "shards"
    __table_args__ = (
        UniqueConstraint("job_id", "stage", "index", name="shards_place"),
        CheckConstraint(
            "(state = 'leased') = (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL)", name="shards_lease"
        ),
        CheckConstraint("state <> 'blocked' OR waiting_on > 0", name="shards_blocked"),
        Index(
            "shards_claimable",
            "queue",
            text("priority DESC"),
            "vtime",
            "id",
            "protocol",
            postgresql_where=text("state = 'ready'"),
        ),
        Index("shards_leased", "lease_expires_at", postgresql_where=text("state = 'leased'")),
        Index("shards_of_tenant", "tenant", postgresql_where=text("state IN ('ready', 'blocked', 'leased')")),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tenant: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    index: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(Text, default=ShardState.READY)
    waiting_on: Mapped[int] = mapped_column(Integer, default=0, doc="shards that must end before this one is ready")
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, doc="what to do: slice, items")
    items: Mapped[int] = mapped_column(Integer, default=0)
    affinity: Mapped[str] = mapped_column(Text, default="", doc="the model it needs")
    protocol: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"), doc="see shared.jobs.protocol")
    priority: Mapped[int] = mapped_column(SmallInteger, default=0)
    cost: Mapped[float] = mapped_column(Float, default=1.0)
    vtime: Mapped[float] = mapped_column(Float, default=0.0, doc="start-time fair queueing's tag")
    ready_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    run_after: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    attempts: Mapped[int] = mapped_column(SmallInteger, default=0)
    started_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), doc="when this lease's processing began; null while only claimed"
    )
    lease_token: Mapped[UUID | None]
    lease_expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    worker: Mapped[str | None] = mapped_column(Text)
    early_deaths: Mapped[int] = mapped_column(
        SmallInteger, default=0, doc="workers that died with it, by no item's doing"
    )
    isolated: Mapped[bool] = mapped_column(default=False, doc="a worker died on it: run item by item")
    probe: Mapped[int | None] = mapped_column(Integer, doc="isolated: the item being tried")
    strikes: Mapped[dict[str, int]] = mapped_column(JSONB, default=dict, doc="item → deaths while it was tried")
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    checkpoints: Mapped[dict[str, dict[str, str]]] = mapped_column(
        JSONB,
        server_default=text("'{}'"),
        default=dict,
        doc="name → key and sha256 of what training left to resume from",
    )
    result_key: Mapped[str | None] = mapped_column(Text, doc="the object this shard's winner wrote")
    result_sha256: Mapped[str | None] = mapped_column(Text)
    result_bytes: Mapped[int | None] = mapped_column(BigInteger)
    result: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, doc="counts of the winner")
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)


class ItemError(Base):
    """One modality of one item that could not be used; modality '' means the whole item."""

    __tablename__ = "item_errors"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    item_index: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    modality: Mapped[str] = mapped_column(Text, primary_key=True)
    shard_index: Mapped[int | None] = mapped_column(Integer, doc="null: found while planning")
    item_id: Mapped[str] = mapped_column(Text)
    code: Mapped[str] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)


class Event(Base):
    """Something that happened to a job; written under the job's row lock, so ids are in the order of commits."""

    __tablename__ = "events"
    __table_args__ = (Index("events_of_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class QueueClock(Base):
    """Virtual time of a queue: the tag of the latest shard that was claimed."""

    __tablename__ = "queue_clocks"

    queue: Mapped[str] = mapped_column(Text, primary_key=True)
    vtime: Mapped[float] = mapped_column(Float, default=0.0)


class TenantClock(Base):
    """Virtual time up to which a tenant's shards of a queue are tagged."""

    __tablename__ = "tenant_clocks"

    queue: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    vtime: Mapped[float] = mapped_column(Float, default=0.0)


class Model(Base):
    """A model that a job made: a fitted encoder, or a fine-tuned model. `key` is its weights."""

    __tablename__ = "models"
    __table_args__ = (Index("models_of_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(Text)
    modality: Mapped[str | None] = mapped_column(Text, doc="null: of all its modalities")
    dimension: Mapped[int] = mapped_column(Integer, doc="of its vectors; of a classifier or regressor, of its fusion's")
    fingerprint: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class Prompt(Base):
    """One version of a prompt of a tenant."""

    __tablename__ = "prompts"
    __table_args__ = (
        UniqueConstraint("tenant", "name", "version", name="prompts_version"),
        Index("prompts_of_tenant", "tenant", "id"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(Integer)
    prompt: Mapped[dict[str, Any]] = mapped_column(JSONB, doc="a PromptTemplate")
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSONB, default=dict)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


#: The longest vectors that can be searched. Shorter ones end in zeros, which change no cosine.
INDEX_DIMENSION = 512


def _nearest(modality: str) -> Index:
    """Hierarchical navigable small worlds (Malkov and Yashunin 2016) over one modality's vectors; nulls are not in."""
    column = f"{modality}_vector"
    return Index(
        f"indexed_items_{modality}", column, postgresql_using="hnsw", postgresql_ops={column: "halfvec_cosine_ops"}
    )


class IndexedItem(Base):
    """An item that can be searched: its modalities' vectors in the space of an `align` model, and what filters need.

    It lives as long as the shard of the index job that wrote it.
    """

    __tablename__ = "indexed_items"
    __table_args__ = (
        *(_nearest(modality) for modality in ("text", "image", "audio")),
        # Three vectors of 1 kB: a comparison with every item must not look each of them up in another table.
        {"postgresql_with": {"toast_tuple_target": 8160}},
    )

    job_id: Mapped[str] = mapped_column(Text, primary_key=True)
    item_id: Mapped[str] = mapped_column(Text, primary_key=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), index=True)
    text_vector: Mapped[list[float] | None] = mapped_column(HALFVEC(INDEX_DIMENSION))
    image_vector: Mapped[list[float] | None] = mapped_column(HALFVEC(INDEX_DIMENSION))
    audio_vector: Mapped[list[float] | None] = mapped_column(HALFVEC(INDEX_DIMENSION))
    label: Mapped[list[str]] = mapped_column(ARRAY(Text))
    split: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    text: Mapped[str | None] = mapped_column(Text, doc="its beginning")
    image_ref: Mapped[str | None] = mapped_column(Text)
    audio_ref: Mapped[str | None] = mapped_column(Text)


class CacheSegment(Base):
    """An object of cached vectors, float32 rows of one encoder."""

    __tablename__ = "cache_segments"
    __table_args__ = (Index("cache_segments_lru", "tenant", "used_at"),)

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)


class CacheEntry(Base):
    """Where the vector of some content under some encoder is."""

    __tablename__ = "cache_entries"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text, primary_key=True)
    content_sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    segment: Mapped[str] = mapped_column(ForeignKey("cache_segments.key", ondelete="CASCADE"), index=True)
    row: Mapped[int] = mapped_column(Integer)


class Worker(Base):
    """A worker process as last heard from."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    pool: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[str] = mapped_column(Text)
    protocol: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"), doc="the highest it understands")
    state: Mapped[str] = mapped_column(Text, default="idle")
    loaded_models: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    current_shards: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
    last_seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=_NOW)
