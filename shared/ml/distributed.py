"""Several processes of one training, one for each GPU: started, attended to and ended by the worker that has the lease.

Only the worker talks to the outside. The processes are plain children (`python -m shared.ml.rank`), spawned and not
forked; each has a socket over which it asks the worker in JSON lines, and data go through files in a folder that they
share. Whatever stops the run (cancelling, a lost lease, a drain) ends them where they are, within a batch; so does the
worker's own end, and the end of any one of them, since the others would wait for it for ever.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import JobError, TriviumError
from shared.settings import WorkerSettings
from shared.worker.progress import Progress

#: Answers a question of a process: called with the facts of its message, returns JSON.
Answer = Callable[..., Any]

#: `check` is called this often at least.
_LOOK_SECONDS = 0.1
#: When one has failed, the others get this long to say why they do: the first to be heard of need not be the first.
_LAST_WORDS_SECONDS = 2.0
#: A share of a batch below this many items keeps no GPU busy.
_FEWEST_ITEMS = 8


class TrainingProcessError(TriviumError):
    """One of the processes that train together died or failed; the attempt fails, and the next goes on from the last
    checkpoint."""

    code = "training_process_failed"


def processes_for(
    settings: WorkerSettings, device: torch.device, batch_size: int, items: int, *, fewest: int = _FEWEST_ITEMS
) -> int:
    """How many processes train on batches of so many items, of so many in all.

    As many as there are GPUs, as long as each gets the `fewest` items of a batch that keep it busy; or as the settings
    say, as long as each gets any, and a GPU of its own.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    if settings.training_processes:
        places = gpus if device.type == "cuda" else settings.training_processes
        return max(1, min(settings.training_processes, places, batch_size // 2, items // 2))
    return max(1, min(gpus, batch_size // fewest, items // fewest))


def run_ranks(
    target: str,
    folder: Path,
    world_size: int,
    *,
    cpu: bool,
    answers: Mapping[str, Answer],
    check: Callable[[], None],
) -> None:
    """Runs `target` (`module:function`, which takes a shared.ml.rank.Rank) in so many processes to their end.

    What they ask is answered by `answers`, in this thread, as `check` is called in it all the time. Raises what these
    raise; JobError as a process raised it; TrainingProcessError if one ended in another way.
    """
    threads = max(1, torch.get_num_threads() // world_size)
    ranks: list[_Rank] = []
    try:
        for place in range(world_size):
            ranks.append(_Rank(target, folder, place, world_size, threads=threads, cpu=cpu))
        _attend(ranks, answers, check)
    finally:
        for rank in ranks:
            rank.end()


def answers_of(progress: Progress, folder: Path) -> dict[str, Answer]:
    """What the processes' own `Progress` (shared.ml.rank.RankProgress) asks; checkpoints go through the folder."""

    def save(name: str, file: str) -> None:
        progress.save(name, (folder / file).read_bytes())

    def restore(name: str) -> str | None:
        state = progress.restore(name)
        if state is None:
            return None
        (folder / "restoring").write_bytes(state)
        return (folder / "restoring").rename(folder / "restored").name  # another process may be reading the one before

    def report(kind: str, facts: dict[str, Any]) -> None:
        progress.report(kind, **facts)

    return {"save": save, "restore": restore, "report": report, "is_due": progress.is_due}


@dataclass(frozen=True)
class _Failure:
    """How a process ended before its time; the lower `order` is, the likelier it is the cause of the others."""

    order: int
    error: TriviumError


class _Rank:
    """One process, from here."""

    def __init__(self, target: str, folder: Path, rank: int, world_size: int, *, threads: int, cpu: bool):
        self.name = f"Training process {rank + 1} of {world_size}"
        self.socket, theirs = socket.socketpair()
        options = {
            "target": target, "folder": str(folder), "rank": rank, "world_size": world_size, "cpu": cpu,
            "threads": threads, "log_level": logging.getLevelName(logging.getLogger().level),
            "socket": theirs.fileno(),
        }  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shared.ml.rank", json.dumps(options)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )
        self._buffer = b""

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that are there; None if it is gone."""
        try:
            chunk = self.socket.recv(1 << 16)
        except ConnectionError:
            chunk = b""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [json.loads(line) for line in lines] if chunk else None

    def answer(self, value: Any) -> None:
        """Answers its last question."""
        with contextlib.suppress(ConnectionError):  # it is gone, as will be seen
            self.socket.sendall(json.dumps(value).encode() + b"\n")

    def outcome(self) -> _Failure | None:
        """How it ended, once it has closed its socket; None: well."""
        try:
            status = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return None  # it has said that it is done, and only tidies up
        if status == 0:
            return None
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return _Failure(1 if status < 0 else 3, TrainingProcessError(f"{self.name} {how}."))

    def end(self) -> None:
        """Ends it, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self.socket.close()


def _attend(ranks: Sequence[_Rank], answers: Mapping[str, Answer], check: Callable[[], None]) -> None:
    """Until all have ended well, or one has not."""
    failures: list[_Failure] = []
    deadline = None
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.socket, selectors.EVENT_READ, rank)
        while selector.get_map() and (deadline is None or time.monotonic() < deadline):
            check()
            for key, _ in selector.select(_LOOK_SECONDS):
                failure = _hear(key.data, answers, selector)
                if failure is not None:
                    failures.append(failure)
            if failures and deadline is None:
                deadline = time.monotonic() + _LAST_WORDS_SECONDS
    if failures:
        raise min(failures, key=lambda failure: failure.order).error


def _hear(rank: _Rank, answers: Mapping[str, Answer], selector: selectors.BaseSelector) -> _Failure | None:
    """Answers what a process asks. Returns how it failed, if it did."""
    messages = rank.read()
    if messages is None:
        selector.unregister(rank.socket)
        return rank.outcome()
    failure = None
    for message in messages:
        if "ask" in message:
            rank.answer(answers[message["ask"]](**message["facts"]))
        else:
            failure = _failure(rank, **message)
    return failure


def _failure(rank: _Rank, message: str, code: str | None, param: str | None) -> _Failure:
    """A process's own words: with a code, a JobError; the errors of communication follow another's end."""
    if code is not None:
        return _Failure(0, JobError(message, code=code, param=param))
    return _Failure(2, TrainingProcessError(f"{rank.name} failed: {message}"))
