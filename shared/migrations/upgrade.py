"""Brings the database to the newest schema, under an advisory lock so that several starts at once do it once.

Rule for writing migrations: the code of the version before must go on working (add, then fill, then drop a release
later), since services are upgraded one by one. A test looks for what would stop it, and for tables that are rewritten.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

#: Any constant does; it names the lock.
_LOCK = 7417181


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(engine: Engine) -> None:
    """Runs what is missing of the migrations, in one transaction."""
    config = alembic_config()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # an index of a large table takes its time
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
