"""`python -m shared.migrations`: schema, bucket and first API key, before the services start. Safe to repeat."""

import os
import sys

from shared.db import make_engine, make_sessions
from shared.jobs.keys import ensure_key
from shared.migrations.check import SchemaError
from shared.migrations.upgrade import upgrade
from shared.observability import configure_logging, get_logger
from shared.settings import load_settings
from shared.storage.objects import make_store


def main() -> None:
    """Prepares Postgres and object storage."""
    settings = load_settings()
    configure_logging("migrations", settings.log_level)
    engine = make_engine(settings.database_url.get_secret_value(), application="trivium-migrations")
    try:
        upgrade(engine)
    except SchemaError as error:
        sys.exit(error.message)
    make_store(settings).ensure_bucket()
    first_key = os.environ.get("TRIVIUM_FIRST_KEY")
    if first_key:
        with make_sessions(engine).begin() as session:
            ensure_key(session, first_key, tenant="default", name="first", scope="admin")
    get_logger(__name__).info("migrated")


if __name__ == "__main__":
    main()
