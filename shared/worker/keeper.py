"""The process beside each worker that renews its leases: `python -m shared.worker.keeper`.

It is a process of its own so that code that holds the interpreter lock (a model loading, a long native call) cannot
lose a lease. It reads JSON lines from the worker (what is held) and answers with JSON lines (what is lost, what is to
stop). When the worker dies, its end of the pipe closes: the keeper gives the leases up at once, and others go on
without waiting for them to run out; those of a worker that was leaving are handed back as they are, since no death
needs looking into. A worker that is stopped (SIGSTOP) is not renewed.
"""

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.db import Sessions, make_engine, make_sessions
from shared.jobs import engine
from shared.jobs.models import Worker
from shared.observability import configure_logging, get_logger
from shared.settings import load_settings

log = get_logger(__name__)

#: How long a keeper whose worker died goes on trying to give its leases up.
LAST_WORDS_SECONDS = 30.0


class Keeper:
    """Renews what its worker holds, and keeps the worker's row fresh."""

    def __init__(
        self,
        sessions: Sessions,
        worker: dict[str, Any],
        parent: int,
        lease_seconds: float,
        heartbeat_file: Path | None = None,
    ):
        self._sessions, self._worker, self._parent, self._lease_seconds = sessions, worker, parent, lease_seconds
        self._heartbeat_file = heartbeat_file
        self.held: list[tuple[int, UUID]] = []
        self.status: dict[str, Any] = {"state": "idle", "loaded_models": [], "current_shards": []}
        self.leaving = False

    def hear(self, message: dict[str, Any]) -> None:
        """A line from the worker."""
        self.held = [(id, UUID(token)) for id, token in message["held"]]
        self.status = message["status"]
        self.leaving = message.get("leaving", False)

    def beat(self) -> dict[str, Any] | None:
        """Renews everything once. Returns what the worker must know; None if Postgres is away."""
        if _is_stopped(self._parent):
            return None
        try:
            with self._sessions.begin() as session:
                renewal = engine.renew(session, self.held, lease_seconds=self._lease_seconds)
                row = {**self._worker, **self.status}
                fresh = {**self.status, "last_seen_at": func.clock_timestamp()}
                session.execute(upsert(Worker).values(**row).on_conflict_do_update(index_elements=["id"], set_=fresh))
        except Exception as error:  # noqa: BLE001  # an outage, whatever its face: the next beat tries again
            log.warning("leases not renewed", error=str(error)[:300])
            return None
        if self._heartbeat_file is not None:
            self._heartbeat_file.touch()
        lost = [id for id, _ in self.held if id not in renewal.kept]
        return {"lost": lost, "stopped": sorted(renewal.cancelled)}

    def last_words(self) -> None:
        """The worker is gone: its leases end now, and so does its row."""
        give_up = engine.hand_back if self.leaving else engine.abandon
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < deadline:
            try:
                with self._sessions.begin() as session:
                    give_up(session, self.held)
                    session.execute(delete(Worker).where(Worker.id == self._worker["id"]))
            except Exception as error:  # noqa: BLE001  # as above
                log.warning("leases not given up yet", error=str(error)[:300])
                time.sleep(1.0)
            else:
                return


def serve(keeper: Keeper, interval: float) -> None:
    """Beats every `interval` seconds and whenever the worker says something, until the worker's pipe closes."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.buffer, selectors.EVENT_READ)
    buffer, due = b"", 0.0
    while True:
        if selector.select(max(0.0, due - time.monotonic())):
            chunk = os.read(sys.stdin.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                keeper.hear(json.loads(line))
            continue
        answer = keeper.beat()
        due = time.monotonic() + interval
        if answer is not None and (answer["lost"] or answer["stopped"]):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _is_stopped(pid: int) -> bool:
    """True while the process is stopped by a signal (state T)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}
    except OSError:
        return False


def main() -> None:
    """`python -m shared.worker.keeper WORKER_JSON`; the parent is the worker."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # the worker says when to go, by closing the pipe
    settings = load_settings()
    configure_logging("keeper", settings.log_level)
    worker = json.loads(sys.argv[1])
    db = make_engine(settings.database_url.get_secret_value(), pool_size=1, application=worker["id"])
    keeper = Keeper(
        make_sessions(db), worker, os.getppid(), settings.engine.lease_seconds, settings.worker.heartbeat_file
    )
    with contextlib.suppress(BrokenPipeError):
        serve(keeper, settings.engine.renew_seconds)
    keeper.last_words()


if __name__ == "__main__":
    main()
