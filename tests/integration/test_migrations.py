"""Migrations that old code survives: each is compared with the schema before it, on a database with rows in it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, make_url, text

from deploy.local.servers import Servers
from shared.db import Base, make_engine
from shared.ids import new_id
from shared.jobs import models
from shared.migrations.check import SchemaError, require_schema
from shared.migrations.upgrade import alembic_config, upgrade
from shared.testing.schema import fill, findings, read_schema, touch

_SCRIPTS = ScriptDirectory.from_config(alembic_config()).walk_revisions()
REVISIONS = [script.revision for script in _SCRIPTS][::-1]

#: What is found in a migration and is all right all the same: {revision: {finding: why}}.
ALLOWED: dict[str, dict[str, str]] = {}


@pytest.fixture
def database(servers: Servers) -> Iterator[str]:
    """The URL of an empty database."""
    name, url = "m" + new_id("x")[-12:], servers.environment["TRIVIUM_DATABASE_URL"]
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield re.sub(r"/[^/]*$", f"/{name}", url)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty(database: str) -> Iterator[Engine]:
    """An empty database."""
    engine = make_engine(database)
    yield engine
    engine.dispose()


def migrate(engine: Engine, revision: str, *, back: bool = False) -> None:
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if back else command.upgrade)(config, revision)


@pytest.mark.parametrize(("before", "revision"), list(pairwise(REVISIONS)))
def test_old_code_survives_the_migration(empty: Engine, before: str, revision: str) -> None:
    migrate(empty, before)
    with empty.begin() as connection:
        old = read_schema(connection)
        fill(connection, old, "before")
    migrate(empty, revision)
    with empty.begin() as connection:
        found = findings(old, read_schema(connection))
        assert [words for words in found if words not in ALLOWED.get(revision, {})] == []
        fill(connection, old, "after")
        assert set(touch(connection, old).values()) <= {2, 2 + 5, 2 + 7}  # queue_clocks came with five, and two more
    migrate(empty, before, back=True)
    with empty.begin() as connection:
        assert read_schema(connection).columns == old.columns


HARMLESS = (
    "ALTER TABLE jobs ADD COLUMN more text",
    "ALTER TABLE jobs ADD COLUMN more integer NOT NULL DEFAULT 1 CHECK (more > 0)",
    "CREATE TABLE more (id text PRIMARY KEY REFERENCES jobs (id))",
    "CREATE INDEX ON jobs (priority); DROP INDEX jobs_metadata",
    "ALTER TABLE jobs ALTER priority SET DEFAULT 3",
    "ALTER TABLE jobs ALTER request DROP NOT NULL",
)
HARMFUL = {
    "DROP TABLE item_errors": "table item_errors is gone",
    "ALTER TABLE jobs DROP COLUMN error_code": "jobs.error_code is gone",
    "ALTER TABLE jobs RENAME COLUMN error_code TO code": "jobs.error_code is gone",
    "ALTER TABLE jobs ALTER error_code TYPE varchar": "jobs.error_code was text and is character varying",
    "ALTER TABLE jobs ALTER created_at DROP DEFAULT": "jobs.created_at has lost its default",
    "UPDATE jobs SET error_code = ''; ALTER TABLE jobs ALTER error_code SET NOT NULL": "jobs.error_code is required",
    "ALTER TABLE jobs ADD COLUMN more text NOT NULL DEFAULT ''; ALTER TABLE jobs ALTER more DROP DEFAULT": "jobs.more",
    "ALTER TABLE jobs ADD CONSTRAINT low CHECK (priority < 9)": "low on jobs is new",
    "CREATE UNIQUE INDEX one_name ON files (filename)": "one_name on files is new",
    "ALTER TABLE jobs ADD CONSTRAINT one FOREIGN KEY (tenant) REFERENCES api_keys (id) NOT VALID": "one on jobs is new",
    "ALTER TABLE jobs DROP CONSTRAINT jobs_idempotency": "jobs_idempotency on jobs is gone",
    "ALTER TABLE jobs ADD COLUMN at timestamptz DEFAULT clock_timestamp()": "table jobs is rewritten",
    "CREATE TRIGGER none BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()":
        "none on jobs is new",
}  # fmt: skip


@pytest.fixture(scope="module")
def filled(environment: dict[str, str]) -> Iterator[Engine]:
    """The newest schema, with a row in each table."""
    engine = make_engine(environment["TRIVIUM_DATABASE_URL"])
    with engine.begin() as connection:
        fill(connection, read_schema(connection), "x")
    yield engine
    engine.dispose()


@pytest.mark.parametrize(("change", "expected"), [*((change, None) for change in HARMLESS), *HARMFUL.items()])
def test_what_would_harm_old_code_is_found(filled: Engine, change: str, expected: str | None) -> None:
    with filled.connect() as connection:
        old = read_schema(connection)
        connection.execute(text(change))
        found = findings(old, read_schema(connection))
        connection.rollback()
    if expected is None:
        assert found == []
    else:
        assert [words.startswith(expected) for words in found] == [True], found


def test_the_models_are_what_the_migrations_make(filled: Engine) -> None:
    assert models.Job.metadata is Base.metadata
    with filled.connect() as connection:
        assert (
            compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
        )


def test_without_the_right_to_create_the_extension_it_says_who_must(empty: Engine, database: str) -> None:
    """A user that owns the database and is no superuser, as managed servers give one."""
    name = database.rpartition("/")[2]
    url = make_url(database).set(username=f"{name}_owner", password="p")
    with empty.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name}_owner LOGIN PASSWORD 'p'"))
        connection.execute(text(f"ALTER DATABASE {name} OWNER TO {name}_owner"))
    owner = make_engine(url.render_as_string(hide_password=False))
    try:
        with pytest.raises(SchemaError, match=f"Let a superuser run CREATE EXTENSION vector in the database '{name}'"):
            upgrade(owner)
        with pytest.raises(SchemaError, match="has no tables yet"):
            require_schema(empty)
        with empty.begin() as connection:
            connection.execute(text("CREATE EXTENSION vector"))
        upgrade(owner)
        require_schema(owner)
    finally:
        owner.dispose()
        with empty.begin() as connection:
            connection.execute(text(f"ALTER DATABASE {name} OWNER TO CURRENT_USER"))
            connection.execute(text(f"REASSIGN OWNED BY {name}_owner TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {name}_owner; DROP ROLE {name}_owner"))


def test_a_pgvector_that_is_too_old_is_refused_in_words(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
        connection.execute(text("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"))
    with pytest.raises(SchemaError, match=r"pgvector 0\.7\.4, and search needs 0\.8"):
        upgrade(empty)


def test_a_start_needs_this_schema_or_a_later_one(empty: Engine) -> None:
    with pytest.raises(SchemaError, match=r"has no tables yet.*python -m shared\.migrations"):
        require_schema(empty)
    for older in REVISIONS[:-1]:
        migrate(empty, older)
        with pytest.raises(SchemaError, match=f"is {older}, and this release needs {REVISIONS[-1]}"):
            require_schema(empty)
    upgrade(empty)
    require_schema(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of a later release'"))
    require_schema(empty)


@pytest.mark.parametrize("service", ["gateway", "fusion"])
def test_a_service_refuses_an_older_schema_in_words(
    empty: Engine, database: str, environment: dict[str, str], service: str
) -> None:
    migrate(empty, REVISIONS[0])
    variables = {**os.environ, **environment, "TRIVIUM_DATABASE_URL": database}
    command = [sys.executable, "-m", f"services.{service}"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Run `python -m shared.migrations` of this release first" in ended.stderr
    assert "Traceback" not in ended.stderr
