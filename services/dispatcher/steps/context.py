"""What the steps of the sweep are given."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.db import Sessions
from shared.queues import Queue
from shared.settings import Settings
from shared.storage.objects import ObjectStore


@dataclass(frozen=True)
class SweepContext:
    """Settings and clients; `hint` says that queues have work."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    hint: Callable[[Iterable[Queue]], None]


#: One thing that is swept: does what is due at `now`, in short transactions of its own, and returns how much that was.
#: Two dispatchers may run the same step at the same moment; each step says why that does no harm.
Run = Callable[[SweepContext, datetime], int]
