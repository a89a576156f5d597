"""Bytes of a job's input, its deadline, and the way to a tenant's unfinished jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text("finished_at IS NULL")
_WITH_DEADLINE = sa.text("finished_at IS NULL AND deadline_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("jobs_unfinished", "jobs", ["tenant", "created_at"], postgresql_where=_UNFINISHED)
    op.create_index("jobs_with_deadline", "jobs", ["deadline_at"], postgresql_where=_WITH_DEADLINE)


def downgrade() -> None:
    op.drop_index("jobs_with_deadline", table_name="jobs", postgresql_where=_WITH_DEADLINE)
    op.drop_index("jobs_unfinished", table_name="jobs", postgresql_where=_UNFINISHED)
    op.drop_column("jobs", "deadline_at")
    op.drop_column("jobs", "input_bytes")
