"""The first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_api_keys()
    _create_blobs()
    _create_cache_segments()
    _create_jobs()
    _create_queue_clocks()
    _create_tenant_clocks()
    _create_workers()
    _create_cache_entries()
    _create_events()
    _create_files()
    _create_item_errors()
    _create_job_files()
    _create_job_stages()
    _create_models()
    _create_shards()
    for queue in ("plan", "text", "image", "audio", "fusion"):
        op.execute(sa.text("INSERT INTO queue_clocks (queue, vtime) VALUES (:queue, 0)").bindparams(queue=queue))


def downgrade() -> None:
    op.drop_index("shards_ready", table_name="shards", postgresql_where=sa.text("state = 'ready'"))
    op.drop_index(
        "shards_of_tenant", table_name="shards", postgresql_where=sa.text("state IN ('ready', 'blocked', 'leased')")
    )
    op.drop_index("shards_leased", table_name="shards", postgresql_where=sa.text("state = 'leased'"))
    op.drop_table("shards")
    op.drop_index("models_of_tenant", table_name="models")
    op.drop_index(op.f("ix_models_job_id"), table_name="models")
    op.drop_table("models")
    op.drop_table("job_stages")
    op.drop_index(op.f("ix_job_files_file_id"), table_name="job_files")
    op.drop_table("job_files")
    op.drop_table("item_errors")
    op.drop_index("files_of_tenant", table_name="files")
    op.drop_index("files_of_blob", table_name="files")
    op.drop_table("files")
    op.drop_index("events_of_job", table_name="events")
    op.drop_table("events")
    op.drop_index(op.f("ix_cache_entries_segment"), table_name="cache_entries")
    op.drop_table("cache_entries")
    op.drop_table("workers")
    op.drop_table("tenant_clocks")
    op.drop_table("queue_clocks")
    op.drop_index("jobs_of_tenant", table_name="jobs")
    op.drop_index("jobs_metadata", table_name="jobs", postgresql_using="gin")
    op.drop_index(
        "jobs_unpublished",
        table_name="jobs",
        postgresql_where=sa.text("status = 'succeeded' AND published_at IS NULL"),
    )
    op.drop_index("jobs_deleted", table_name="jobs", postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.drop_index("jobs_ended", table_name="jobs", postgresql_where=sa.text("finished_at IS NOT NULL"))
    op.drop_table("jobs")
    op.drop_index("cache_segments_lru", table_name="cache_segments")
    op.drop_table("cache_segments")
    op.drop_table("blobs")
    op.drop_table("api_keys")


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key_sha256"),
    )


def _create_blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("tenant", "sha256"),
        sa.UniqueConstraint("key"),
    )


def _create_cache_segments() -> None:
    op.create_table(
        "cache_segments",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("cache_segments_lru", "cache_segments", ["tenant", "used_at"], unique=False)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("schema", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("shards_open", sa.Integer(), nullable=False),
        sa.Column("items_total", sa.BigInteger(), nullable=False),
        sa.Column("items_succeeded", sa.BigInteger(), nullable=False),
        sa.Column("items_partial", sa.BigInteger(), nullable=False),
        sa.Column("items_failed", sa.BigInteger(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant", "idempotency_key", name="jobs_idempotency"),
    )
    op.create_index(
        "jobs_ended", "jobs", ["finished_at"], unique=False, postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    op.create_index(
        "jobs_deleted", "jobs", ["deleted_at"], unique=False, postgresql_where=sa.text("deleted_at IS NOT NULL")
    )
    op.create_index(
        "jobs_unpublished",
        "jobs",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("status = 'succeeded' AND published_at IS NULL"),
    )
    op.create_index("jobs_metadata", "jobs", ["metadata"], unique=False, postgresql_using="gin")
    op.create_index("jobs_of_tenant", "jobs", ["tenant", "id"], unique=False)


def _create_queue_clocks() -> None:
    op.create_table(
        "queue_clocks",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("vtime", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("queue"),
    )


def _create_tenant_clocks() -> None:
    op.create_table(
        "tenant_clocks",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("vtime", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "tenant"),
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("loaded_models", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("current_shards", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
    )


def _create_cache_entries() -> None:
    op.create_table(
        "cache_entries",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["segment"], ["cache_segments.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant", "fingerprint", "content_sha256"),
    )
    op.create_index(op.f("ix_cache_entries_segment"), "cache_entries", ["segment"], unique=False)


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("events_of_job", "events", ["job_id", "id"], unique=False)


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "sha256"],
            ["blobs.tenant", "blobs.sha256"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("files_of_blob", "files", ["tenant", "sha256"], unique=False)
    op.create_index("files_of_tenant", "files", ["tenant", "id"], unique=False)


def _create_item_errors() -> None:
    op.create_table(
        "item_errors",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("item_index", sa.BigInteger(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("shard_index", sa.Integer(), nullable=True),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "item_index", "modality"),
    )


def _create_job_files() -> None:
    op.create_table(
        "job_files",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "file_id"),
    )
    op.create_index(op.f("ix_job_files_file_id"), "job_files", ["file_id"], unique=False)


def _create_job_stages() -> None:
    op.create_table(
        "job_stages",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("shards_total", sa.Integer(), nullable=False),
        sa.Column("shards_done", sa.Integer(), nullable=False),
        sa.Column("shards_failed", sa.Integer(), nullable=False),
        sa.Column("items_total", sa.BigInteger(), nullable=False),
        sa.Column("items_done", sa.BigInteger(), nullable=False),
        sa.Column("items_cached", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "stage"),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_models_job_id"), "models", ["job_id"], unique=False)
    op.create_index("models_of_tenant", "models", ["tenant", "id"], unique=False)


def _create_shards() -> None:
    op.create_table(
        "shards",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("waiting_on", sa.Integer(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("affinity", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=False),
        sa.Column("vtime", sa.Float(), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("early_deaths", sa.SmallInteger(), nullable=False),
        sa.Column("isolated", sa.Boolean(), nullable=False),
        sa.Column("probe", sa.Integer(), nullable=True),
        sa.Column("strikes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result_key", sa.Text(), nullable=True),
        sa.Column("result_sha256", sa.Text(), nullable=True),
        sa.Column("result_bytes", sa.BigInteger(), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'leased') = (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL)", name="shards_lease"
        ),
        sa.CheckConstraint("state <> 'blocked' OR waiting_on > 0", name="shards_blocked"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "stage", "index", name="shards_place"),
    )
    op.create_index(
        "shards_leased", "shards", ["lease_expires_at"], unique=False, postgresql_where=sa.text("state = 'leased'")
    )
    op.create_index(
        "shards_of_tenant",
        "shards",
        ["tenant"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'blocked', 'leased')"),
    )
    op.create_index(
        "shards_ready",
        "shards",
        ["queue", sa.literal_column("priority DESC"), "vtime", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'ready'"),
    )
