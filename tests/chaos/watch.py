"""Looks into Postgres, past the proxies: what workers hold, how soon a dead one's shards go on, what zombies wrote."""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select

from shared.db import Sessions, is_outage
from shared.jobs.models import Shard, Worker
from shared.jobs.states import ShardState

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Held:
    """A lease that a worker had when it was struck; `midway`: its training had left a checkpoint."""

    shard_id: int
    token: UUID
    midway: bool = False


@dataclass
class Recovery:
    """From the death of a shard's holder to the shard being free to be claimed, and to its being in other hands.

    Both are None until then; the second counts the wait for a worker that has nothing else to do.
    """

    kind: str
    held: Held
    began: float
    alone: bool
    free: float | None = None
    seconds: float | None = None


class Watch:
    """Watches from a thread of its own until `stop`."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.recoveries: list[Recovery] = []
        #: Leases that ran out in the hands of a frozen worker.
        self.zombies: list[Held] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watches no more."""
        self._stopping.set()
        self._thread.join()

    def held_by(self, pid: int) -> list[Held]:
        """What the worker with this process id holds. Empty while Postgres is away."""
        query = select(Shard.id, Shard.lease_token, Shard.checkpoints != {}).join(Worker, Worker.id == Shard.worker)
        rows = self._read(query.where(Worker.pid == pid, Shard.state == ShardState.LEASED))
        return [Held(*row) for row in rows or ()]

    def struck_items(self, pid: int) -> int:
        """Shards in a worker's hands on which another one died while it tried an item: a second death condemns it."""
        query = select(func.count()).select_from(Shard).join(Worker, Worker.id == Shard.worker)
        rows = self._read(query.where(Worker.pid == pid, Shard.state == ShardState.LEASED, Shard.strikes != {}))
        return int(rows[0][0]) if rows else 0

    def died(self, kind: str, held: Collection[Held], *, alone: bool) -> None:
        """Measures from now on how long it takes. `alone`: no other fault is about."""
        with self._lock:
            self.recoveries += [Recovery(kind, one, time.monotonic(), alone) for one in held]

    def waiting(self) -> list[Recovery]:
        """Those whose shards have not gone on."""
        with self._lock:
            return [recovery for recovery in self.recoveries if recovery.seconds is None]

    def froze(self, held: Collection[Held]) -> None:
        """Notes those of a frozen worker's leases that it has lost meanwhile.

        Not those under which it finished: what it had sent before it froze may have come in after.
        """
        for one in held:
            rows = self._read(select(Shard.result_key).where(Shard.id == one.shard_id))
            finished = any(one.token.hex in (row[0] or "") for row in rows or ())
            if rows is not None and not finished and not self._look(one)[1]:
                self.zombies.append(one)

    def zombie_writes(self) -> list[str]:
        """Results that a frozen worker wrote under a lease that it had lost. A key holds the token of its lease."""
        tokens = {held.token.hex for held in self.zombies}
        with self._sessions() as session:
            keys = session.scalars(select(Shard.result_key).where(Shard.result_key.is_not(None))).all()
        return [key for key in keys if key is not None and any(token in key for token in tokens)]

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            for recovery in self.waiting():
                state, ours = self._look(recovery.held)
                elapsed = time.monotonic() - recovery.began
                if recovery.free is None and not ours:
                    recovery.free = elapsed
                if not ours and state != ShardState.READY:
                    recovery.seconds = elapsed

    def _look(self, held: Held) -> tuple[str, bool]:
        """A shard's state, and whether it still is in the hands that held it (so, while Postgres is away)."""
        rows = self._read(select(Shard.state, Shard.lease_token).where(Shard.id == held.shard_id))
        if rows is None:
            return ShardState.LEASED, True
        if not rows:
            return ShardState.DONE, False  # its job was deleted
        return rows[0][0], rows[0][1] == held.token

    def _read(self, query: Select[*tuple[Any, ...]]) -> list[Any] | None:
        """The rows; None while Postgres is away."""
        try:
            with self._sessions() as session:
                return list(session.execute(query).all())
        except Exception as error:
            if not is_outage(error):
                raise
            return None
