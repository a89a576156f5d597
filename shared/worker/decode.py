"""Decoding of untrusted media in processes whose death is survivable, with limits on time and memory per item.

The child (`python -m shared.worker.decode MODULE:FUNCTION MEMORY`) imports no torch, so it starts fast and stays small.
Requests and answers pass through its standard input and output as a JSON header line and raw bytes: nothing is
unpickled, so a decoder that was taken over by its input can lie about pixels and nothing else.
"""

import contextlib
import importlib
import itertools
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.errors import ItemError, TriviumError
from shared.observability import get_logger

log = get_logger(__name__)

Decoded = NDArray[Any]

_Task = tuple[bytes, dict[str, Any], Future[Decoded]]

#: A decode process may take this long to import what it needs, on a busy machine.
START_SECONDS = 300.0


class DecoderUnavailableError(TriviumError):
    """A decode process does not start; the attempt at the shard fails, not the item."""

    code = "decoder_unavailable"


class DecodePool:
    """A few decode processes. `submit` is thread-safe and returns a future of an array or an ItemError."""

    #: Before what is urgent goes the end.
    _END, _URGENT, _USUAL = range(3)

    def __init__(self, target: str, *, processes: int, seconds: float, memory_bytes: int):
        self._target, self._seconds, self._memory = target, seconds, memory_bytes
        self._tasks: queue.PriorityQueue[tuple[int, int, _Task | None]] = queue.PriorityQueue()
        self._places = itertools.count()  # among tasks as urgent, the first goes first
        self._children: list[_Child] = []
        self._threads = [threading.Thread(target=self._feed, name=f"decode-{i}", daemon=True) for i in range(processes)]
        for thread in self._threads:
            thread.start()

    def submit(self, data: bytes, options: dict[str, Any], *, urgent: bool = False) -> "Future[Decoded]":
        """Decodes one item. The future raises ItemError (`decode_timeout`, `decode_crashed`, or the decoder's own).

        What is urgent goes before everything that is not and has not begun.
        """
        future: Future[Decoded] = Future()
        self._put(self._URGENT if urgent else self._USUAL, (data, options, future))
        return future

    def close(self) -> None:
        """Ends the processes, whatever they are at; what waits is cancelled."""
        with contextlib.suppress(queue.Empty):
            while (task := self._tasks.get_nowait()[2]) is not None:
                task[2].cancel()
        for _ in self._threads:
            self._put(self._END, None)
        for child in self._children:
            child.end()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _put(self, urgency: int, task: _Task | None) -> None:
        self._tasks.put((urgency, next(self._places), task))

    def _feed(self) -> None:
        child = _Child(self._target, self._memory)
        self._children.append(child)
        while (task := self._tasks.get()[2]) is not None:
            data, options, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(child.call(data, options, self._seconds))
            except ItemError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001  # it belongs to whoever waits for this item
                future.set_exception(error)
        child.kill()


class _Child:
    """One decode process, started anew when it dies."""

    def __init__(self, target: str, memory_bytes: int):
        self._memory_bytes = memory_bytes
        self._command = [sys.executable, "-m", "shared.worker.decode", target, str(memory_bytes)]
        self._ready = False
        self._process = self._start()

    def call(self, data: bytes, options: dict[str, Any], seconds: float) -> Decoded:
        if self._process.poll() is not None:
            self._ready = False
            self._process = self._start()
        assert self._process.stdin is not None
        if not self._ready:
            self._wait_ready()
        try:
            _write(self._process.stdin, {"bytes": len(data), "seconds": seconds, "options": options}, data)
            header, body = self._answer(time.monotonic() + seconds)
            if "code" not in header:
                return np.frombuffer(body, dtype=header["dtype"]).reshape(header["shape"])
            refusal = ItemError(str(header["message"]), code=str(header["code"]))
        except TimeoutError:
            self.kill()
            raise ItemError(f"Decoding took longer than {seconds:g} s.", code="decode_timeout") from None
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            # It died, or what it answers makes no sense: its input may have taken it over.
            self.kill()
            raise ItemError("Decoding this item ended its process.", code="decode_crashed") from None
        raise refusal

    def _wait_ready(self) -> None:
        """Raises DecoderUnavailableError: that it does not start is no item's fault."""
        try:
            self._answer(time.monotonic() + START_SECONDS)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            self.kill()
            raise DecoderUnavailableError(f"A decode process did not start: {error!r}") from error
        self._ready = True

    def end(self) -> None:
        """Ends the process from another thread; a call that waits for its answer fails."""
        self._process.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        received = bytearray()
        header: dict[str, Any] | None = None
        needed = 0
        while header is None or len(received) < needed:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                raise EOFError
            received += chunk
            if header is None and (end := received.find(b"\n")) >= 0:
                header = json.loads(received[:end])
                needed = header["bytes"]
                del received[: end + 1]
            if max(needed, len(received)) > self._memory_bytes:
                raise ValueError("the answer is larger than the process may be")
        return header, bytes(received)

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )


def _write(pipe: Any, header: dict[str, Any], body: bytes | memoryview) -> None:
    for part in (json.dumps(header).encode() + b"\n", body):
        view = memoryview(part)
        while view.nbytes:
            view = view[pipe.write(view) :]


def serve(decode: Callable[[bytes, dict[str, Any]], Decoded], requests: BinaryIO, answers: Any) -> None:
    """The child's loop: says that it is ready, then one request after the other, until the pipe closes."""
    _write(answers, {"bytes": 0}, b"")
    for header, data in _requests(requests):
        # Should the parent be gone, nobody else would end an endless loop: the unhandled alarm does.
        signal.setitimer(signal.ITIMER_REAL, header["seconds"] + 5)
        try:
            array = np.ascontiguousarray(decode(data, header["options"]))
        except ItemError as error:
            _write(answers, {"bytes": 0, "code": error.error_code, "message": error.message}, b"")
        except MemoryError:
            message = "Decoding this item needs more memory than is allowed."
            _write(answers, {"bytes": 0, "code": "media_too_large", "message": message}, b"")
        except Exception as error:  # noqa: BLE001  # a decoder's bug is this item's trouble, not its neighbours'
            message = f"This item cannot be decoded: {type(error).__name__}: {error}"[:500]
            _write(answers, {"bytes": 0, "code": "corrupt_media", "message": message}, b"")
        else:
            body = array.reshape(-1).view(np.uint8).data if array.size else b""
            answer = {"bytes": array.nbytes, "dtype": array.dtype.str, "shape": array.shape}
            _write(answers, answer, body)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it would end a child that only waits for the next item


def _requests(stream: BinaryIO) -> Iterable[tuple[dict[str, Any], bytes]]:
    while line := stream.readline():
        header = json.loads(line)
        yield header, stream.read(header["bytes"])


def main() -> None:
    """Entry of the child."""
    target, memory = sys.argv[1], int(sys.argv[2])
    module, _, name = target.partition(":")
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    decode = getattr(importlib.import_module(module), name)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory  # what the libraries reserved is not the item's
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(decode, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
