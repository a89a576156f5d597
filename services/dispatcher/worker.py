"""The dispatcher: `python -m services.dispatcher`. A worker that plans jobs, and the sweep beside it."""

from collections.abc import Mapping

from services.dispatcher.metrics import Metrics
from services.dispatcher.plan import PlanJob
from services.dispatcher.steps.context import SweepContext
from services.dispatcher.sweep import Sweep
from shared.broker import send_hints
from shared.queues import Queue, Stage
from shared.worker.context import Handler, LaneHandler, WorkerContext
from shared.worker.run import run_worker

#: Jobs planned at the same time: a large manifest, and small ones past it.
PLANNERS = 2


class DispatcherPool:
    """What this service brings to the shard loop (see shared.worker.context.Pool)."""

    def __init__(self, context: WorkerContext, sweep: Sweep):
        self.handlers: Mapping[Stage, Handler] = {Stage.PLAN: PlanJob(context)}
        self.lane: LaneHandler | None = None
        self._sweep = sweep

    def loaded_models(self) -> list[str]:
        """None: planning needs no model."""
        return []

    def close(self) -> None:
        """Stops the sweep."""
        self._sweep.stop()


def make_pool(context: WorkerContext) -> DispatcherPool:
    """The pool, with its sweep started, so that shards are rescued even while Celery waits for Redis."""
    metrics = Metrics()
    if context.settings.metrics_port:
        metrics.serve(context.settings.metrics_port)
    sweeping = SweepContext(
        context.settings, context.sessions, context.store, lambda queues: send_hints(context.broker, queues)
    )
    sweep = Sweep(sweeping, metrics)
    sweep.start()
    return DispatcherPool(context, sweep)


def main() -> None:
    """Runs a dispatcher until it is told to stop."""
    run_worker(Queue.PLAN, make_pool, runners=PLANNERS)
