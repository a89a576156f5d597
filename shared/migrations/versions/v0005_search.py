"""Items that can be searched, with vectors of the extension pgvector."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

from shared.migrations.extension import require_pgvector

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MODALITIES = ("text", "image", "audio")


def upgrade() -> None:
    """Adds the extension and a table. Raises SchemaError, in words, if there cannot be the extension."""
    require_pgvector(op.get_bind())
    op.create_table(
        "indexed_items",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("shard_id", sa.BigInteger(), nullable=False),
        *(sa.Column(f"{modality}_vector", HALFVEC(512), nullable=True) for modality in _MODALITIES),
        sa.Column("label", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("image_ref", sa.Text(), nullable=True),
        sa.Column("audio_ref", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "item_id"),
        postgresql_with={"toast_tuple_target": 8160},
    )
    op.create_index("ix_indexed_items_shard_id", "indexed_items", ["shard_id"])
    for modality in _MODALITIES:
        column = f"{modality}_vector"
        op.create_index(
            f"indexed_items_{modality}",
            "indexed_items",
            [column],
            postgresql_using="hnsw",
            postgresql_ops={column: "halfvec_cosine_ops"},
        )


def downgrade() -> None:
    """Takes the table away. The extension stays: others may use it."""
    op.drop_table("indexed_items")
