"""Planning a batch: its input file is read twice, first to see that all of it is right, then for its items."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

from services.dispatcher.batches.endpoints import endpoint_of
from services.dispatcher.batches.lines import Requests, open_requests
from services.dispatcher.manifests.reading import Reading
from shared.batches import BatchOf
from shared.errors import JobError
from shared.jobs.records import Plan
from shared.planning import Row


class BatchPlan:
    """What a batch adds to the planning of its job. Its model is known: the job was made for it."""

    def __init__(self, reading: Reading, open_file: Callable[[], Requests], request: Mapping[str, Any]):
        self._reading, self._open, self._request = reading, open_file, request
        self._count = 0

    @classmethod
    def of(cls, reading: Reading, key: str, request: Mapping[str, Any]) -> Self | None:
        """For the job of a batch whose input file is the object `key`; None for other jobs."""
        if "batch" not in request:
            return None
        asked = BatchOf.model_validate(request["batch"])
        return cls(reading, lambda: open_requests(reading.store, reading.limits, key, asked), request)

    def refused(self) -> Plan | None:
        """A plan of nothing if a line of the file is wrong: the job fails, with each such line as an error.

        Raises JobError (`empty_file`, `too_many_requests`).
        """
        requests, most = self._open(), self._reading.limits.items
        for _ in requests:
            if requests.count % 256 == 0:
                self._reading.check()
            if requests.count > most:
                raise JobError(f"The input file has more than {most} requests.", code="too_many_requests")
        wrong = requests.wrong
        if not requests.count and not wrong.failed_items:
            raise JobError("The input file has no requests.", code="empty_file")
        self._count = requests.count
        if not wrong.failed_items:
            return None
        schema = {"shard_size": self._request["shard_size"], "encoders": {}, "fitted": [], "batch": {"invalid": True}}
        return Plan([], schema, wrong.failed_items, failures=wrong, failure_count=wrong.failed_items)

    def rows(self) -> Iterator[Row]:
        """The items of all requests."""
        endpoint = endpoint_of(self._request)
        return (row for request in self._open() for row in endpoint.rows(request))

    def counted(self, plan: Plan) -> Plan:
        """The plan, in which it says how many requests there are."""
        return replace(plan, schema={**plan.schema, "batch": {"requests": self._count}})
