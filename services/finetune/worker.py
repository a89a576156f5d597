"""The pools of this service: `python -m services.finetune` trains, `python -m services.finetune generate` answers."""

import os
import sys

from shared.queues import Queue
from shared.worker.run import run_worker


def main(pool: str = "fine_tune") -> None:
    """Runs a worker of a pool until it is told to stop. Shards take long: what waits had better wait for any worker."""
    # Small networks meet at barriers all the time. On cores that other processes want, threads that spin there made
    # training ten times slower than threads that sleep. libgomp reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if pool == Queue.GENERATE:
        from services.finetune.generate.tasks import make_pool as make_generate_pool

        run_worker(Queue.GENERATE, make_generate_pool, ahead=0)
    elif pool == Queue.FINE_TUNE:
        from services.finetune.tasks import make_pool

        run_worker(Queue.FINE_TUNE, make_pool, ahead=0)
    sys.exit(f"There is no pool {pool!r} here; there are {Queue.FINE_TUNE} and {Queue.GENERATE}.")
