"""Entry point: `python -m services.gateway`."""

import sys

import uvicorn

from services.gateway.app import create_app
from services.gateway.deps import open_services
from shared.observability import configure_logging
from shared.settings import SettingsError, load_settings

#: After SIGTERM, requests under way get this long; streams of events are ended at once.
GRACE_SECONDS = 15

#: Longer than load balancers keep idle connections, so that it is they who close them.
KEEP_ALIVE_SECONDS = 75


def main() -> None:
    """Serves until SIGTERM."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(error.message)
    configure_logging("gateway", settings.log_level)
    with open_services(settings) as services:
        uvicorn.run(
            create_app(services),
            host=settings.gateway_host,
            port=settings.gateway_port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


if __name__ == "__main__":
    main()
