"""Entry point: `python -m services.gateway`."""

import ipaddress
import signal
import sys

import uvicorn

from services.gateway.app import create_app
from services.gateway.deps import open_services
from services.gateway.protocol import LimitedHeadProtocol
from shared.db import make_engine
from shared.migrations.check import SchemaError, require_schema
from shared.observability import configure_logging
from shared.settings import Settings, SettingsError, load_settings

#: After SIGTERM, requests under way get this long; streams of events are ended at once, and go on elsewhere.
GRACE_SECONDS = 15

#: Longer than load balancers keep idle connections, so that it is they who close them.
KEEP_ALIVE_SECONDS = 75


def check_reach(settings: Settings) -> None:
    """Raises SettingsError if strangers could get in without a key: development mode is for this machine alone."""
    host = settings.gateway_host
    if settings.mode == "development" and host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise SettingsError(f"TRIVIUM_GATEWAY_HOST: development mode needs no keys, so it cannot be served on {host}.")


def check_schema(settings: Settings) -> None:
    """Raises SchemaError if the database lacks migrations. Waits for Postgres."""
    engine = make_engine(settings.database_url.get_secret_value(), application="trivium-gateway")
    require_schema(engine)
    engine.dispose()


def main() -> None:
    """Serves until SIGTERM. Raises SystemExit with a message if the settings, or the database's schema, forbid it."""
    # uvicorn has a handler of its own, and when it has shut down it raises the signal again: that is a good end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = load_settings()
        check_reach(settings)
        configure_logging("gateway", settings.log_level)
        check_schema(settings)
    except (SettingsError, SchemaError) as error:
        sys.exit(error.message)
    with open_services(settings) as services:
        uvicorn.run(
            create_app(services),
            host=settings.gateway_host,
            port=settings.gateway_port,
            http=LimitedHeadProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips=settings.trusted_proxies,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


if __name__ == "__main__":
    main()
