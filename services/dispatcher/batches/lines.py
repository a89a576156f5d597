"""The requests in the input file of a batch. As with OpenAI, one line that is wrong fails the whole batch."""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.dispatcher.manifests.jsonl import read_jsonl
from services.dispatcher.manifests.ranged import RangedObject
from shared.batches import BatchOf
from shared.jobs.records import ItemFailure
from shared.planning import Row
from shared.planning.ledger import Ledger
from shared.settings import Limits
from shared.storage.objects import ObjectStore

#: Characters of a `custom_id`.
LONGEST_ID = 512

#: After so many lines that are wrong, the rest is not looked at.
MOST_WRONG = 1000


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request: its place among them, counted from 0, its line, from 1, and about its bytes in memory."""

    place: int
    line: int
    custom_id: str
    body: Mapping[str, Any]
    size: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an item has no result: a stable code, and words for people."""

    code: str
    message: str


def open_requests(store: ObjectStore, limits: Limits, key: str, asked: BatchOf) -> "Requests":
    """The requests in an object."""
    window = RangedObject(store, key, store.size(key))
    return Requests(read_jsonl(io.BufferedReader(window, 1024**2), limits.line_bytes), asked)


class Requests:
    """The requests of an input file in their order. Iterated once; `wrong` then holds what is wrong with other lines,
    as failures of items (index: the line, counted from 0)."""

    def __init__(self, rows: Iterable[Row], asked: BatchOf):
        self._rows, self._asked = rows, asked
        self._ids = Ledger()
        self.wrong = Ledger()
        self.count = 0

    def __iter__(self) -> Iterator[BatchLine]:
        for row in self._rows:
            fault = self._fault(row)
            if fault is not None:
                self.wrong.add(ItemFailure(row.line - 1, f"line-{row.line}", None, *fault))
                if self.wrong.failed_items == MOST_WRONG:
                    return
                continue
            self.count += 1
            yield BatchLine(self.count - 1, row.line, row.fields["custom_id"], row.fields["body"], row.size)

    def _fault(self, row: Row) -> tuple[str, str] | None:
        """Code and words for what is wrong with a line."""
        if (problem := row.problems.get(None)) is not None:
            return "invalid_json_line", problem.message
        custom_id, body = row.fields.get("custom_id"), row.fields.get("body")
        if not isinstance(custom_id, str) or not custom_id or len(custom_id) > LONGEST_ID or "\x00" in custom_id:
            return "invalid_custom_id", f"A request needs a custom_id: text of up to {LONGEST_ID} characters."
        if row.fields.get("method") != "POST":
            return "invalid_method", 'The method of a request is "POST".'
        if row.fields.get("url") != self._asked.endpoint:
            return "invalid_url", f"The url of a request is the endpoint of its batch, {self._asked.endpoint}."
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            return "missing_required_parameter", "A request needs a body, an object that names its model."
        if body["model"] != self._asked.model:
            return "mismatched_model", f"All requests of a batch are for one model, here {self._asked.model!r}."
        if not self._ids.is_new(custom_id):
            return "duplicate_custom_id", "An earlier request of this batch has the same custom_id."
        return None
