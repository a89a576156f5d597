"""The migrations and the tables that the code believes in."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from shared.db import Base, make_engine
from shared.jobs import models


def test_the_migrations_make_the_tables_of_the_models(environment: dict[str, str]) -> None:
    assert models.Job.metadata is Base.metadata
    engine = make_engine(environment["TRIVIUM_DATABASE_URL"])
    options = {"compare_type": True, "compare_server_default": True}
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
    engine.dispose()
