"""The shard loop of a worker process: claim, prepare, run, store, each in its own thread, so that shards overlap.

    claim + prepare  →  run (the model thread)  →  store + finish

One shard runs, or as many as the loop has runners, and one is prepared behind it. Postgres is asked for work when a
hint arrives and at least every two seconds, so that everything goes on with Redis switched off. Interactive requests
have the model thread to themselves when no shard runs, and go between two batches of one that does.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from shared.broker import send_hints
from shared.errors import JobError, LeaseLostError, ShardCancelledError
from shared.jobs import engine
from shared.jobs.layout import finish_plan
from shared.jobs.records import Finished, Lease, Plan
from shared.observability import get_logger
from shared.queues import Queue, Stage
from shared.schemas import JobType
from shared.worker.context import Pool, WorkerContext
from shared.worker.control import Control, DrainedError, is_away
from shared.worker.intake import Intake
from shared.worker.interactive import Interactive
from shared.worker.leases import HeldLeases

log = get_logger(__name__)

#: Which queues may have work after a shard of a stage has ended.
_NEXT: dict[Stage, tuple[Queue, ...]] = {
    Stage.PLAN: (Queue.TEXT, Queue.IMAGE, Queue.AUDIO, Queue.FUSION),
    Stage.FIT: (Queue.TEXT, Queue.IMAGE, Queue.AUDIO),
    Stage.TEXT: (Queue.FUSION,),
    Stage.IMAGE: (Queue.FUSION,),
    Stage.AUDIO: (Queue.FUSION,),
}

#: Of several runners one is kept for shards that cost no more: a manifest of 32 MiB is planned in a few seconds.
SMALL_COST = 33.0

#: A worker that leaves gets this long to answer the interactive requests in its hands.
LAST_ANSWERS_SECONDS = 2.0


def _next(lease: Lease) -> tuple[Queue, ...]:
    """The queues that may have work now."""
    if lease.stage is Stage.FUSION and lease.request.get("type", JobType.FEATURES) != JobType.FEATURES:
        return (Queue.FINE_TUNE, Queue.GENERATE)
    return _NEXT.get(lease.stage, ())


@dataclass(frozen=True)
class _Work:
    """A shard on its way through the threads."""

    lease: Lease
    control: Control
    value: Any


class ShardLoop:
    """Runs a pool's shards until it is told to stop."""

    def __init__(self, context: WorkerContext, pool: Pool, held: HeldLeases, *, runners: int = 1, ahead: int = 1):
        self._context, self._pool, self._held = context, pool, held
        self._runners = runners
        self._slots_total = runners + ahead  # between claim and the end of the model step: those that run, those behind
        self._large: set[int] = set()  # shards that cost more than the runner that is kept free for others takes
        self._hint = threading.Event()
        self._stopping = threading.Event()
        self._slots = threading.BoundedSemaphore(self._slots_total)
        self._preparing: Control | None = None
        self._begun: set[int] = set()
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue()  # of the model thread
        self._outputs: queue.Queue[_Work | None] = queue.Queue(maxsize=2)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("claim", self._claim), *[("model", self._model)] * runners, ("store", self._store))
        ]
        self._interactive = Interactive(wake=self._tasks.put)
        self._intake: Intake | None = None
        if pool.lane is not None:
            url = context.settings.redis_url.get_secret_value()
            self._intake = Intake(url, pool.lane, self._interactive, on_load=held.refresh)

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()
        if self._intake is not None:
            self._intake.start()

    def hint(self) -> None:
        """Something may be ready: look now."""
        self._hint.set()

    def stop(self) -> None:
        """Claims nothing more and hands back what the model has not begun; what it has begun goes on. Does not wait."""
        self._stopping.set()
        self._hint.set()
        self._held.leave()
        if self._intake is not None:
            self._intake.stop()
        if self._preparing is not None:
            self._preparing.drain()

    def break_off(self) -> None:
        """What still runs has to stop at its next batch, to be handed back. Does not wait."""
        self._held.break_off()

    @property
    def busy(self) -> bool:
        """Whether a shard is between the beginning of its model step and its end."""
        return bool(self._begun)

    @property
    def running(self) -> bool:
        """Whether the threads have anything to do; not for long, once stopped, unless one hangs."""
        return any(thread.is_alive() for thread in self._threads)

    def _claim(self) -> None:
        while self._take_slot():
            self._hint.clear()
            lease = self._claim_one()
            if lease is None:
                self._slots.release()
                self._hint.wait(self._context.settings.engine.idle_poll_seconds)
            else:
                self._take(lease)
        for _ in range(self._runners):
            self._tasks.put(None)

    def _take(self, lease: Lease) -> None:
        """Begins on a shard, at once or, if it once killed a worker, when it can run alone; held from here on."""
        control = self._held.add(lease)
        if self._runners > 1 and lease.cost > SMALL_COST:
            self._large.add(lease.shard_id)
        if not lease.isolated or all(self._take_slot() for _ in range(self._slots_total - 1)):
            self._begin(lease, control)
        else:
            self._give_up(lease, DrainedError(f"Shard {lease.shard_id} was not begun."))

    def _take_slot(self) -> bool:
        """Waits for a free slot; False when the worker is to stop."""
        while not self._stopping.is_set():
            if self._slots.acquire(timeout=0.5):
                return True
        return False

    def _free_slots(self, lease: Lease) -> None:
        for _ in range(self._slots_total if lease.isolated else 1):
            self._slots.release()
        if lease.shard_id in self._large:
            self._large.remove(lease.shard_id)
            self._hint.set()  # another large one may be waiting

    def _begin(self, lease: Lease, control: Control) -> None:
        handler = self._pool.handlers[lease.stage]
        self._preparing = control
        if self._stopping.is_set():
            control.drain()

        def prepare() -> None:
            handler.load(lease, control)
            control.patiently(lambda: self._start(lease))
            self._tasks.put(partial(self._run, _Work(lease, control, handler.prepare(lease, control))))

        if not self._step(lease, control, prepare):
            self._free_slots(lease)
        self._preparing = None

    def _claim_one(self) -> Lease | None:
        settings = self._context.settings.engine
        only_small = self._runners > 1 and len(self._large) >= self._runners - 1
        try:
            with self._context.sessions.begin() as session:
                leases = engine.claim(
                    session,
                    self._context.queue,
                    self._context.worker_id,
                    loaded=self._pool.loaded_models(),
                    lease_seconds=settings.lease_seconds,
                    starving_seconds=settings.starving_seconds,
                    largest=SMALL_COST if only_small else math.inf,
                )
        except Exception as error:
            if not is_away(error):
                log.exception("claiming failed")
            else:
                log.warning("claiming waits for Postgres", error=str(error)[:300])
            return None
        return leases[0] if leases else None

    def _start(self, lease: Lease) -> None:
        with self._context.sessions.begin() as session:
            engine.start(session, lease)

    def _model(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
        if self._intake is not None:
            self._intake.finish(LAST_ANSWERS_SECONDS)
        self._outputs.put(None)

    def _run(self, work: _Work) -> None:
        lease, control = work.lease, work.control
        handler = self._pool.handlers[lease.stage]
        self._begun.add(lease.shard_id)
        if self._stopping.is_set():
            control.drain()  # prepared, but not begun: another worker can have it
        if not lease.isolated:  # should it end this process, nothing else must have been running
            control.between = self._interactive.between_batches

        def run() -> None:
            self._outputs.put(_Work(lease, control, handler.run(lease, work.value, control)))

        self._interactive.begin_shard()
        self._step(lease, control, run)
        self._interactive.end_shard()
        self._free_slots(lease)
        self._held.refresh()

    def _store(self) -> None:
        for work in self._put_out():
            finish = partial(self._finish, work.lease, work.value, work.control)
            self._step(work.lease, work.control, finish)

    def _put_out(self) -> Iterator[_Work]:
        """What the runners put out, until all of them have ended."""
        running = self._runners
        while running:
            work = self._outputs.get()
            if work is None:
                running -= 1
            else:
                yield work

    def _finish(self, lease: Lease, output: Any, control: Control) -> None:
        result = self._pool.handlers[lease.stage].store(lease, output, control)
        accepted = control.patiently(lambda: self._commit(lease, result))
        self._let_go(lease)
        log.info("shard done" if accepted else "shard done too late")
        send_hints(self._context.broker, _next(lease))

    def _commit(self, lease: Lease, result: Finished | Plan) -> bool:
        with self._context.sessions.begin() as session:
            if isinstance(result, Plan):
                return finish_plan(session, lease, result)
            return bool(engine.finish(session, [result]))

    def _step(self, lease: Lease, control: Control, step: Callable[[], None]) -> bool:
        """One step of one shard; whatever it raises becomes what the engine is told. True if it went well."""
        with structlog.contextvars.bound_contextvars(
            job=lease.job_id, stage=lease.stage.value, shard=lease.index, isolated=lease.isolated
        ):
            try:
                control.check()
                step()
            except Exception as error:  # noqa: BLE001  # every failure is the shard's, none is the loop's
                self._give_up(lease, error)
                return False
            return True

    def _give_up(self, lease: Lease, error: Exception) -> None:
        """Tells the engine how a shard went wrong; if Postgres is away meanwhile, waits with the lease kept alive."""
        reporting = Control(lease.shard_id)
        try:
            reporting.patiently(lambda: self._report(lease, error))
        except Exception:
            log.exception("a failed shard could not be reported; its lease will run out")
        finally:
            self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        self._held.remove(lease)
        self._begun.discard(lease.shard_id)

    def _report(self, lease: Lease, error: Exception) -> None:
        with self._context.sessions.begin() as session:
            if isinstance(error, LeaseLostError):
                log.warning("lease lost")
            elif isinstance(error, ShardCancelledError | DrainedError):
                log.info("shard handed back", reason=error.error_code)
                engine.release(session, lease)
            elif is_away(error):
                log.warning("shard handed back during an outage", error=str(error)[:300])
                engine.release(session, lease, delay_seconds=2.0)
            elif isinstance(error, JobError):
                log.error("job failed", code=error.error_code, error=error.message)
                engine.fail_job(session, lease, error.error_code, error.message)
            else:
                log.error("attempt failed", exc_info=error)
                message = f"{type(error).__name__}: {error}"
                code = getattr(error, "error_code", "attempt_failed")
                attempts = self._context.settings.engine.max_attempts
                engine.fail(session, lease, code, message, max_attempts=attempts)
