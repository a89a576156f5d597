"""The clocks of the queues that came after the first schema: without one, a queue's virtual time stands still, and
whoever has used it before waits behind whoever has not."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_QUEUES = ("fine_tune", "generate")


def upgrade() -> None:
    """Adds the rows."""
    for queue in _QUEUES:
        # No later than what tenants were given so far.
        now = "SELECT coalesce(min(vtime), 0) FROM tenant_clocks WHERE queue = :queue"
        insert = f"INSERT INTO queue_clocks (queue, vtime) VALUES (:queue, ({now})) ON CONFLICT DO NOTHING"
        op.execute(sa.text(insert).bindparams(queue=queue))


def downgrade() -> None:
    """Takes them away."""
    op.execute(sa.text("DELETE FROM queue_clocks WHERE queue = ANY(:queues)").bindparams(queues=list(_QUEUES)))
