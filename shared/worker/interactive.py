"""Interactive requests that are ready for the model, and how the model thread gets to them between batches."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from shared.lanes.messages import Result, Said
from shared.worker.context import Prepared, Steps

#: The model waits this long for requests that are nearly prepared, to take them along.
GATHER_SECONDS = 0.002

#: Batches that are answered bit by bit at the same time, each in its turn. More would only be slower, all of them.
MOST_AT_ONCE = 8

#: After an interactive request, more are expected for this long.
BUSY_SECONDS = 1.0


@dataclass(frozen=True)
class Ready:
    """A request that is ready: its deadline (Unix time), what runs it with others for its model, and where its result
    goes; None: its deadline has passed."""

    model: str
    deadline: float
    prepared: Prepared
    run: Callable[[Sequence[Any]], Sequence[Result] | Steps]
    answer: Callable[[Result | Exception | None], None]


@dataclass
class _Running:
    """A batch that is answered bit by bit; `left` are those that wait for more."""

    steps: Steps
    left: dict[int, Ready]


class Interactive:
    """The requests between their arrival at this worker and their turn. Thread-safe.

    The methods that run something are the model thread's: they raise nothing.
    """

    def __init__(self, wake: Callable[[Callable[[], None]], None]):
        """`wake` makes the model thread call what it is given when it has nothing else to do."""
        self._wake = wake
        self._running: list[_Running] = []
        self._goes_on = False  # the model thread was told to go on with what is running
        self._changed = threading.Condition()
        self._expected: Counter[str] = Counter()
        self._ready: defaultdict[str, deque[Ready]] = defaultdict(deque)
        self._used_at = float("-inf")
        #: Whether the model thread is in a shard, and whether it gets to what is ready soon.
        self.in_shard, self.reachable = False, True

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer, or did a moment ago."""
        with self._changed:
            expected = self._expected.total() > 0
        return expected or bool(self._running) or time.monotonic() - self._used_at < BUSY_SECONDS

    def expect(self, model: str) -> None:
        """A request for a model has come, and is being prepared."""
        with self._changed:
            self._used_at = time.monotonic()
            self._expected[model] += 1

    def add(self, ready: Ready) -> None:
        """An expected request is ready."""
        with self._changed:
            self._leave(ready.model)
            self._ready[ready.model].append(ready)
            self._changed.notify()
        self._wake(self.run_waiting)

    def forget(self, model: str) -> None:
        """An expected request failed."""
        with self._changed:
            self._leave(model)
            self._changed.notify()

    def begin_shard(self) -> None:
        """The model thread begins on a shard: out of reach until the shard lets others go in between."""
        self.in_shard, self.reachable = True, False

    def between_batches(self) -> bool:
        """Runs what waits; whether more is to be expected."""
        self.reachable = True
        self.run_waiting()
        return self.busy

    def end_shard(self) -> None:
        """The shard is over."""
        self.in_shard, self.reachable = False, True

    def run_waiting(self) -> None:
        """Runs what waits now: of each model one batch, and one step of each that runs already, at most, so that a
        shard's turn comes, too."""
        with self._changed:
            models = list(self._ready)
        for model in models:
            if len(self._running) < MOST_AT_ONCE:
                self._run(self._gather(model))
        for running in list(self._running):
            self._step(running)
        if self._running and not self._goes_on:
            self._goes_on = True
            self._wake(self._go_on)

    def break_off(self, error: Exception) -> None:
        """Ends what is still running, with an error."""
        for running in list(self._running):
            self._end(running, error)

    def _leave(self, model: str) -> None:
        self._expected[model] -= 1
        if not self._expected[model]:
            del self._expected[model]

    def _gather(self, model: str) -> list[Ready]:
        """The oldest requests for a model that fit into one batch, with those that are nearly prepared."""
        until = time.monotonic() + GATHER_SECONDS
        batch: list[Ready] = []
        with self._changed:
            waiting = self._ready[model]
            while sum(ready.prepared.weight for ready in batch) < 1:
                if waiting:
                    batch.append(waiting.popleft())
                elif not self._expected[model] or not self._changed.wait(until - time.monotonic()):
                    break
            if waiting:
                self._wake(self.run_waiting)  # the rest, after what the model thread was asked for meanwhile
            else:
                del self._ready[model]
        return batch

    def _run(self, batch: list[Ready]) -> None:
        now = time.time()
        for late in (ready for ready in batch if ready.deadline <= now):
            late.answer(None)
        batch = [ready for ready in batch if ready.deadline > now]
        if not batch:
            return
        outcomes: list[tuple[Ready, Result | Exception]]
        try:
            results = batch[0].run([ready.prepared.value for ready in batch])
            if isinstance(results, Generator):
                self._running.append(_Running(results, dict(enumerate(batch))))
                return
            outcomes = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001  # every failure is the callers', none is the model thread's
            outcomes = [(ready, error) for ready in batch]
        for ready, outcome in outcomes:
            ready.answer(outcome)
        self._used_at = time.monotonic()

    def _go_on(self) -> None:
        self._goes_on = False
        self.run_waiting()

    def _step(self, running: _Running) -> None:
        """One step of what runs, for those who still wait for it."""
        for place in [place for place, ready in running.left.items() if ready.prepared.gone.is_set()]:
            running.left.pop(place).answer(None)
        if not running.left:
            self._end(running, None)
            return
        try:
            told = next(running.steps, None)
        except Exception as error:  # noqa: BLE001  # as above
            self._end(running, error)
            return
        if told is None:
            self._end(running, None)
            return
        for place, result in told:
            if place in running.left:
                is_last = not isinstance(result, Said)
                (running.left.pop(place) if is_last else running.left[place]).answer(result)

    def _end(self, running: _Running, outcome: Exception | None) -> None:
        self._running.remove(running)
        for ready in running.left.values():
            ready.answer(outcome)
        running.steps.close()
        self._used_at = time.monotonic()
