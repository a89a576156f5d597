"""What fine_tune and predict jobs need: checkpoints, the feature sets and models that a job reads."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column and a table; models may do without a modality of their own."""
    op.add_column(
        "shards", sa.Column("checkpoints", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'"))
    )
    op.create_table(
        "job_sources",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "source_id"),
    )
    op.create_index("ix_job_sources_source_id", "job_sources", ["source_id"])
    op.alter_column("models", "modality", nullable=True)


def downgrade() -> None:
    """Takes the column and the table away; models without a modality go with them."""
    op.execute("DELETE FROM models WHERE modality IS NULL")
    op.alter_column("models", "modality", nullable=False)
    op.drop_table("job_sources")
    op.drop_column("shards", "checkpoints")
