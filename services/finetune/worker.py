"""The fine-tuning pool: `python -m services.finetune`."""

import os

from shared.queues import Queue
from shared.worker.run import run_worker


def main() -> None:
    """Runs a worker until it is told to stop. Training takes long: what waits had better wait for any worker."""
    # Small networks meet at barriers all the time. On cores that other processes want, threads that spin there made
    # training ten times slower than threads that sleep. libgomp reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from services.finetune.tasks import make_pool

    run_worker(Queue.FINE_TUNE, make_pool, ahead=0)
