"""The image pool: `python -m services.image`."""

from services.image.tasks import make_pool
from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop."""
    run_worker(Queue.IMAGE, make_pool)
