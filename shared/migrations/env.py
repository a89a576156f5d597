"""Alembic's environment: runs the migrations on the connection that `shared.migrations.upgrade` passes in."""

from alembic import context

from shared.db import Base
from shared.jobs import models

assert models.Job.metadata is Base.metadata  # the import registers the tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
