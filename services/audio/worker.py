"""The audio pool: `python -m services.audio`."""

from services.audio.tasks import make_pool
from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop."""
    run_worker(Queue.AUDIO, make_pool)
