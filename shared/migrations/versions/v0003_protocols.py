"""Protocols: which a shard needs, and which a worker understands"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_READY = sa.text("state = 'ready'")
_ORDER: tuple[sa.ColumnElement[object], ...] = (
    sa.column("queue"), sa.literal_column("priority DESC"), sa.column("vtime"), sa.column("id"),
)  # fmt: skip


def upgrade() -> None:
    for table in ("shards", "workers"):
        op.add_column(table, sa.Column("protocol", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))
    # Claims go past the shards that are too new for them without looking at their rows.
    op.create_index("shards_claimable", "shards", [*_ORDER, sa.column("protocol")], postgresql_where=_READY)
    op.drop_index("shards_ready", table_name="shards")


def downgrade() -> None:
    op.create_index("shards_ready", "shards", [*_ORDER], postgresql_where=_READY)
    op.drop_index("shards_claimable", table_name="shards")
    for table in ("shards", "workers"):
        op.drop_column(table, "protocol")
