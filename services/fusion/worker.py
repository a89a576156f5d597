"""The fusion pool: `python -m services.fusion`."""

from services.fusion.tasks import make_pool
from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop."""
    run_worker(Queue.FUSION, make_pool)
