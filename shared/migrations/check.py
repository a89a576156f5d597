"""Before a service starts: is the database's schema one that its code can work on?"""

import time

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from shared.db import is_outage
from shared.errors import TriviumError
from shared.migrations.upgrade import alembic_config
from shared.observability import get_logger

log = get_logger(__name__)

_PAUSE_SECONDS = 1.0


class SchemaError(TriviumError):
    """The database lacks migrations that this release needs; the service must not start."""

    code = "schema_too_old"


def require_schema(engine: Engine) -> None:
    """Raises SchemaError unless the database has every migration of this release. Waits while Postgres is away.

    A revision that this release does not know is a later one's: migrations leave the code before them working.
    """
    scripts = ScriptDirectory.from_config(alembic_config())
    newest = scripts.get_current_head()
    older = {script.revision for script in scripts.walk_revisions()} - {newest}
    found = _revision(engine)
    if found is None or found in older:
        state = f"is {found}" if found else "has no tables yet"
        raise SchemaError(
            f"The database's schema {state}, and this release needs {newest}. "
            "Run `python -m shared.migrations` of this release first (with Compose: `docker compose run --rm migrate`)."
        )


def _revision(engine: Engine) -> str | None:
    """The revision of the database's schema; None if it has none."""
    while True:
        try:
            with engine.connect() as connection:
                return MigrationContext.configure(connection).get_current_revision()
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("the start waits for Postgres", error=str(error)[:300])
            time.sleep(_PAUSE_SECONDS)
