"""The Postgres extension that migrations need: made if that is allowed, else asked for in words."""

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from shared.migrations.check import SchemaError

#: From here on, searches with filters go on until they have found enough.
_OLDEST = (0, 8)


def require_pgvector(connection: Connection) -> None:
    """Makes the extension `vector` if it is not there. Raises SchemaError which says what has to be done by whom."""
    if _version(connection) is None:
        _create(connection)
    version = _version(connection) or ""
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise SchemaError(
            f"The database has pgvector {version}, and search needs 0.8 or later: install it for this Postgres, then "
            "run ALTER EXTENSION vector UPDATE in this database."
        )


def _version(connection: Connection) -> str | None:
    version: str | None = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    return version


def _create(connection: Connection) -> None:
    database = connection.scalar(text("SELECT current_database()"))
    try:
        with connection.begin_nested():
            connection.execute(text("CREATE EXTENSION vector"))
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == "42501":  # insufficient_privilege
            raise SchemaError(
                "Search needs the Postgres extension pgvector, and this user may not create it. Let a superuser run "
                f"CREATE EXTENSION vector in the database {database!r}, then run the migrations again."
            ) from error
        if state in {"0A000", "58P01", "22023"}:  # no such extension is installed
            raise SchemaError(
                "Search needs the Postgres extension pgvector (0.8 or later), and it is not installed here: install "
                "it (the image pgvector/pgvector has it), then run the migrations again."
            ) from error
        raise
