"""Being told to stop: SIGTERM or SIGINT, once to drain, twice to leave at once."""

import signal
import sys
from queue import Empty, SimpleQueue
from types import FrameType

#: A signal that another thread takes wakes nobody: the main one, which has to handle it, looks for itself this often.
_LOOK_SECONDS = 0.5


class StopRequests:
    """Takes the process's signals from here on. Until `arm` the first of them ends the process: nothing is held yet."""

    def __init__(self) -> None:
        self._armed = False
        self._requests: SimpleQueue[int] = SimpleQueue()  # unlike an Event, its `put` may interrupt its `get`
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def arm(self) -> None:
        """From now on signals wait to be asked for."""
        self._armed = True

    def put(self, exit_code: int) -> None:
        """Asks for the end from within."""
        self._requests.put(exit_code)

    def wait(self) -> int:
        """Waits for a request; the exit code that goes with it."""
        while (code := self.get(_LOOK_SECONDS)) is None:
            pass
        return code

    def get(self, seconds: float) -> int | None:
        """The same, but waits at most so many seconds; None if none came."""
        try:
            return self._requests.get(timeout=seconds)
        except Empty:
            return None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature of a handler
        if not self._armed:
            sys.exit(0)
        self._requests.put(0)
