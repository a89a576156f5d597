"""`python -m deploy.local`: runs the embedded stack in the foreground until Ctrl-C or SIGTERM."""

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.process import StartError
from deploy.local.stack import DATA_DIR, SERVICES, Stack
from shared.errors import InvalidRequestError
from shared.observability import configure_logging


def main() -> int:
    """Runs the stack as the command line says; returns the exit status."""
    arguments = _parse_arguments()
    return run(arguments.data_dir, arguments.port, dict(arguments.scale))


def run(data_dir: Path, port: int, replicas: Mapping[str, int]) -> int:
    """Runs the stack, with a worker that chats, in the foreground until Ctrl-C or SIGTERM; returns the exit status."""
    configure_logging("supervisor", "WARNING")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ways to end it are KeyboardInterrupt
    try:
        with Stack(data_dir, ports={"gateway": port}, replicas={"generate": 1, **replicas}) as stack:
            stack.wait_ready()
            _print_addresses(stack)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        print("Stopped.")
    except (StartError, InvalidRequestError) as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="where everything is kept (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the gateway's port (%(default)s)")
    parser.add_argument(
        "--scale",
        type=_replicas,
        action="append",
        default=[],
        metavar="SERVICE=COUNT",
        help=f"processes of a service, 1 unless given; one of {', '.join(SERVICES)}",
    )
    return parser.parse_args()


def _replicas(text: str) -> tuple[str, int]:
    service, _, count = text.partition("=")
    if not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not like image=2")
    return service, int(count)


def _print_addresses(stack: Stack) -> None:
    rows = {
        "Gateway": stack.gateway_url,
        "Documentation": f"{stack.gateway_url}/docs",
        "Data and logs": stack.folder.path,
        "Addresses and keys": stack.folder.path / "stack.json",
    }
    for name, value in rows.items():
        print(f"{name + ':':20}{value}")
    print("Ctrl-C stops it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
