"""What a worker process has in its hands, and what a pool gives it to run."""

import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.broker import Broker
from shared.catalog import Catalog
from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.records import Finished, Lease, Plan
from shared.lanes.messages import LaneRequest, Result
from shared.language_models import LanguageModels, load_language_models
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.worker.control import Control


@dataclass(frozen=True)
class WorkerContext:
    """Settings and clients of one worker process, built by its entry point."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    broker: Broker
    catalog: Catalog
    queue: Queue
    worker_id: str
    language_models: LanguageModels = field(default_factory=load_language_models)


class Handler(Protocol):
    """How a pool runs the shards of one stage: steps in different threads, so that shards overlap.

    Each step may raise what `control.check()` raises, UnavailableError (an outage: handed back without spending an
    attempt), JobError (ends the job), or anything else (the attempt failed).
    """

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the model into memory. A death in this step spends no attempt: it was not the shard's doing."""
        ...

    def prepare(self, lease: Lease, control: Control) -> Any:
        """Reads and decodes the inputs, ahead of the model. The attempt counts from here."""
        ...

    def run(self, lease: Lease, prepared: Any, control: Control) -> Any:
        """The model's part; the only step that may touch a model. Calls `control.check()` between batches.

        One that calls `control.breathe()` instead, before each batch, lets interactive requests go in between.
        """
        ...

    def store(self, lease: Lease, output: Any, control: Control) -> Finished | Plan:
        """Writes the objects; the loop then ends the shard in one transaction."""
        ...


@dataclass(frozen=True)
class Prepared:
    """An interactive request that is ready for the model: its share of one batch, and its bytes in memory.

    `gone` is set as soon as it is known that nobody waits for the answer any more.
    """

    value: Any
    weight: float
    bytes: int
    gone: threading.Event = field(default_factory=threading.Event)


#: What a lane handler makes of a batch bit by bit: of each step the places in the batch that something is told of, in
#: their order. `Said` is followed by more, every other result is the last of its place.
Steps = Generator[Sequence[tuple[int, Result]], None, None]


class LaneHandler(Protocol):
    """How a pool answers interactive requests of one stage: steps in different threads, ahead of the model.

    Each step may raise what `control.check()` raises, UnavailableError, or anything else: the request failed.
    """

    stage: Stage

    def models(self) -> list[str]:
        """The models in memory, by the names that requests have for them."""
        ...

    def load(self, request: LaneRequest, control: Control) -> None:
        """Brings the model into memory."""
        ...

    def prepare(self, request: LaneRequest, control: Control) -> Prepared:
        """Reads and decodes the inputs."""
        ...

    def run(self, batch: Sequence[Any]) -> Sequence[Result] | Steps:
        """The model's part, for the values of several requests for one model. Nothing else may touch the model.

        A result for each, or steps: between two of them, which should be short, others have their turn.
        """
        ...


class Pool(Protocol):
    """What a service brings to the loop; `lane` is None if nobody can wait for what it does."""

    handlers: Mapping[Stage, Handler]
    lane: LaneHandler | None

    def loaded_models(self) -> list[str]:
        """Ids of the models in memory: shards that need them are claimed first."""
        ...

    def close(self) -> None:
        """Ends what the pool started (decode processes)."""
        ...


PoolFactory = Callable[[WorkerContext], Pool]


def new_worker_id(queue: Queue) -> str:
    """Unique per process start, and readable: pool, host, a short random end."""
    return f"{queue.value}-{socket.gethostname()[:32]}-{new_id('w')[-8:]}"
