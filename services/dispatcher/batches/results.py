"""What the shards of a batch's job left for its requests, read slice by slice."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from services.dispatcher.batches.endpoints import Endpoint
from services.dispatcher.batches.lines import Fault
from shared.db import Sessions
from shared.errors import NotFoundError
from shared.jobs.models import ItemError, Job, Shard
from shared.jobs.states import ShardState
from shared.storage.objects import ObjectStore
from shared.worker.slices import CorruptObjectError, read_verified

_LOST = "The result of this request is not in storage any more."


class Results:
    """The results of a job's items by their index; asked for in their order, only one slice is held in memory."""

    def __init__(self, sessions: Sessions, store: ObjectStore, job: Job, endpoint: Endpoint):
        self._sessions, self._store, self._job, self._endpoint = sessions, store, job, endpoint
        self._size: int = job.schema["shard_size"]
        self._slice = -1
        self._found: Mapping[int, Any] = {}
        self._of_modalities: dict[int, Fault] = {}
        self._of_items: dict[int, Fault] = {}

    def of(self, index: int) -> Any:
        """What the endpoint made of an item, or its Fault; None if no worker got to it.

        What was made without one of an item's modalities, since that could not be read, does not count.
        """
        if index // self._size != self._slice:
            self._load(index // self._size)
        return self._of_modalities.get(index) or self._found.get(index) or self._of_items.get(index)

    def _load(self, slice_: int) -> None:
        first = slice_ * self._size
        faults = select(ItemError).where(
            ItemError.job_id == self._job.id, ItemError.item_index.between(first, first + self._size - 1)
        )
        shard = select(Shard).where(
            Shard.job_id == self._job.id, Shard.stage == self._endpoint.stage, Shard.index == slice_,
            Shard.state == ShardState.DONE,
        )  # fmt: skip
        with self._sessions() as session:
            wrong = session.scalars(faults).all()
            done = session.scalar(shard)
        self._of_modalities = {row.item_index: Fault(row.code, row.message) for row in wrong if row.modality}
        self._of_items = {row.item_index: Fault(row.code, row.message) for row in wrong if not row.modality}
        self._slice, self._found = slice_, {}
        if done is not None and done.result_key is not None and done.result_sha256 is not None:
            try:
                self._found = self._endpoint.read(read_verified(self._store, done.result_key, done.result_sha256))
            except (NotFoundError, CorruptObjectError):
                lost = range(first, first + self._size)
                self._of_items = dict.fromkeys(lost, Fault("result_lost", _LOST)) | self._of_items
