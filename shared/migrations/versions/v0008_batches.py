"""Batches in OpenAI's shape: which job answers which file of requests, and the files of its answers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a table."""
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("output_file_id", sa.Text()),
        sa.Column("error_file_id", sa.Text()),
        sa.Column("summary", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("finalized_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id"),
    )
    op.create_index("batches_of_tenant", "batches", ["tenant", "id"])
    op.create_index(
        "batches_open", "batches", ["input_file_id"], postgresql_where=sa.text("finalized_at IS NULL")
    )  # fmt: skip


def downgrade() -> None:
    """Takes the table away; the jobs stay."""
    op.drop_table("batches")
