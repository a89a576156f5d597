"""The text pool: `python -m services.text`."""

from services.text.tasks import make_pool
from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop."""
    run_worker(Queue.TEXT, make_pool)
