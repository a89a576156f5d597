"""The fine-tuning pool: `python -m services.finetune`."""

from services.finetune.tasks import make_pool
from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop. Training takes long: what waits had better wait for any worker."""
    run_worker(Queue.FINE_TUNE, make_pool, ahead=0)
