"""The intake of interactive requests: taken from Redis and prepared ahead of the model; answers go back.

    listen  →  load (once a model)  →  prepare  →  (the model thread)  →  answer

Nothing here is durable: for what is lost somebody waits, who is told when the deadline has passed. No thread waits for
Redis but those that listen and answer.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from pydantic import ValidationError
from redis.exceptions import RedisError

from shared.errors import DeadlineError, TriviumError, UnavailableError
from shared.lanes.inbox import LOOK_SECONDS, Inbox
from shared.lanes.messages import Failed, LaneAnswer, LaneRequest, Result, Said
from shared.observability import get_logger
from shared.worker.context import LaneHandler, Prepared
from shared.worker.control import Control, T, is_away
from shared.worker.interactive import Interactive, Ready

log = get_logger(__name__)

#: Requests in hand, and bytes of those that are prepared: beyond either they stay in Redis, for other workers.
IN_HAND, PREPARED_BYTES = 64, 256 * 1024**2

#: A lane that nobody serves waits this long for an idle worker, and so long for one that runs a shard.
IDLE_PATIENCE, BUSY_PATIENCE = 0.1, 1.0

#: Requests prepared at the same time.
PREPARING = 4

#: While Redis is away it is asked this often.
_PAUSE_SECONDS = 1.0


#: What came of a request; None: nobody waits for it any more.
_Outcome = Result | Exception | None


class Haste(Control):
    """In the place of a shard's control: waits out no outage, and stops at a deadline."""

    def __init__(self, deadline: float):
        super().__init__(shard_id=0)
        self._deadline = deadline

    def check(self) -> None:
        """Raises DeadlineError."""
        if time.time() >= self._deadline:
            raise DeadlineError("Nobody waits for this any more.")

    def patiently(self, action: Callable[[], T]) -> T:
        """Runs `action` once."""
        self.check()
        return action()


class Intake:
    """The threads that take, prepare and answer the requests of one worker."""

    def __init__(self, redis_url: str, handler: LaneHandler, interactive: Interactive, on_load: Callable[[], None]):
        self._handler, self._interactive, self._on_load = handler, interactive, on_load
        self._inbox = Inbox(redis_url, handler.stage)
        self._loader = ThreadPoolExecutor(1, "lane-load")
        self._preparers = ThreadPoolExecutor(PREPARING, "lane-prepare")
        self._answers: queue.SimpleQueue[tuple[LaneRequest, threading.Event, _Outcome] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._in_hand = self._bytes = 0
        self._stopping = threading.Event()
        self._away = False
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("lane-listen", self._listen), ("lane-answer", self._answer))
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Takes nothing more. Does not wait."""
        self._stopping.set()

    def finish(self, seconds: float) -> None:
        """On the model thread, after `stop`: answers what is in hand, and ends the threads, within so many seconds."""
        deadline = time.monotonic() + seconds
        self._threads[0].join(seconds)
        while self._in_hand and time.monotonic() < deadline:
            self._interactive.run_waiting()
            time.sleep(0.005)
        self._interactive.break_off(UnavailableError("This worker is leaving."))
        self._answers.put(None)
        for executor in (self._loader, self._preparers):
            executor.shutdown(wait=False, cancel_futures=True)
        self._threads[1].join(max(deadline - time.monotonic(), 0.1))
        self._inbox.close()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            if not self._has_room():
                self._stopping.wait(LOOK_SECONDS / 10)
                continue
            try:
                patience = BUSY_PATIENCE if self._interactive.in_shard else IDLE_PATIENCE
                data = self._inbox.take(self._handler.models(), patience)
            except (RedisError, OSError) as error:
                self._note(away=True, error=str(error))
                self._stopping.wait(_PAUSE_SECONDS)
                continue
            self._note(away=False)
            if data is not None:
                self._accept(data)

    def _has_room(self) -> bool:
        return self._interactive.reachable and self._in_hand < IN_HAND and self._bytes < PREPARED_BYTES

    def _accept(self, data: bytes | str) -> None:
        try:
            request = LaneRequest.model_validate_json(data)
        except ValidationError:
            log.exception("an interactive request cannot be read")
            return
        if request.deadline <= time.time():
            return
        with self._lock:
            self._in_hand += 1
        self._interactive.expect(request.model)
        if request.model in self._handler.models():
            self._preparers.submit(self._prepare, request)
        else:
            self._loader.submit(self._load, request)

    def _load(self, request: LaneRequest) -> None:
        try:
            self._handler.load(request, Haste(request.deadline))
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller is told
            self._fail(request, error)
        else:
            self._on_load()
            self._preparers.submit(self._prepare, request)
        with suppress(RedisError, OSError):
            self._inbox.release(request.model)

    def _prepare(self, request: LaneRequest) -> None:
        control = Haste(request.deadline)
        try:
            control.check()
            prepared = self._handler.prepare(request, control)
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(request, error)
            return
        with self._lock:
            self._bytes += prepared.bytes
        answer = partial(self._tell, request, prepared)
        self._interactive.add(Ready(request.model, request.deadline, prepared, self._handler.run, answer))

    def _fail(self, request: LaneRequest, error: Exception) -> None:
        self._interactive.forget(request.model)
        self._tell(request, Prepared(None, 0, 0), error)

    def _tell(self, request: LaneRequest, prepared: Prepared, outcome: _Outcome) -> None:
        """What came of a request: unless more follows, its end in this process, but for sending this."""
        if not isinstance(outcome, Said):
            with self._lock:
                self._bytes -= prepared.bytes
        self._answers.put((request, prepared.gone, outcome))

    def _answer(self) -> None:
        while (entry := self._answers.get()) is not None:
            request, gone, outcome = entry
            result = _failed(outcome) if isinstance(outcome, Exception) else outcome
            if result is not None and not gone.is_set():
                self._send(request, gone, result)
            if not isinstance(outcome, Said):
                with self._lock:
                    self._in_hand -= 1

    def _send(self, request: LaneRequest, gone: threading.Event, result: Result) -> None:
        try:
            answer = LaneAnswer(request_id=request.request_id, result=result)
            if not self._inbox.answer(request.request_id, request.reply_to, answer.model_dump_json()):
                gone.set()
        except (RedisError, OSError) as error:
            gone.set()  # better no answer than one with a gap
            self._note(away=True, error=str(error))

    def _note(self, *, away: bool, error: str = "") -> None:
        """One line when Redis goes away, and one when it is back."""
        if away and not self._away:
            log.warning("the interactive lane waits for Redis", error=error[:300])
        elif self._away and not away:
            log.info("the interactive lane has Redis again")
        self._away = away


def _failed(error: Exception) -> Failed | None:
    """What the caller is told; nothing if it waits no more."""
    if isinstance(error, DeadlineError):
        return None
    if is_away(error):
        log.warning("interactive request failed in an outage", error=str(error)[:300])
        return Failed(code=UnavailableError.code, message="A server that the worker needs cannot be reached.")
    if isinstance(error, TriviumError):
        log.warning("interactive request failed", code=error.error_code, error=error.message)
        return Failed(code=error.error_code, message=error.message)
    log.error("interactive request failed", exc_info=error)
    return Failed(code=TriviumError.code, message="Something went wrong in the worker; its log says what.")
