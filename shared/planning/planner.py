"""Planning a job: rows are validated, numbered and written out as slices while they stream by."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ValidationError

from shared.catalog import Catalog, FittedEncoder
from shared.errors import InvalidRequestError, ItemError, JobError
from shared.fine_tuning import TrainEncoder, reads_text
from shared.items import Item, MediaLocation, PlannedItem
from shared.jobs.encoders import in_schema
from shared.jobs.records import ItemFailure, Plan
from shared.planning.ledger import Ledger
from shared.planning.media import Finder, MediaResolver
from shared.planning.rows import Problem, Row, batches
from shared.planning.uploads import MediaPacker, SliceWriter, Uploads
from shared.queues import Modality
from shared.schemas import Encoders, Fusion, FusionMethod, Input, JobType
from shared.settings import Fetching, Limits
from shared.storage.objects import ObjectStore

#: Iterating over an enum is slow, and this is done for every item.
MODALITIES = tuple(Modality)

_NOTHING_LEFT = Problem("no_usable_modality", "No modality of this item could be used; see its other errors.")

_USABLE_ID = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


class PlanRequest(BaseModel):
    """What planning needs of a job's request."""

    encoders: Encoders
    fusion: Fusion
    shard_size: int
    input: Input | None = None
    train_encoder: TrainEncoder = TrainEncoder.FROZEN
    reads_text: bool = False

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Self:
        """Of a stored request. Jobs that train or predict want each modality's vectors, and fuse them themselves."""
        if request["type"] != JobType.FEATURES:
            request = {**request, "fusion": Fusion(method=FusionMethod.NONE)}
        return cls.model_validate({**request, "reads_text": reads_text(request)})


@dataclass(frozen=True)
class Source:
    """A manifest that is being read: its rows, and the media that lie beside it.

    `bytes` is what a prefix holds altogether; of other manifests the size was known when the job was accepted.
    """

    rows: Iterable[Row]
    find_members: Finder = lambda names: {}  # noqa: ARG005  # most manifests have nothing beside them
    bytes: int | None = None


@dataclass(frozen=True)
class Place:
    """For which attempt at which job a plan is made, and where its objects go."""

    store: ObjectStore
    job_id: str
    token: UUID


def plan_rows(
    source: Source,
    request: PlanRequest,
    place: Place,
    *,
    catalog: Catalog,
    limits: Limits,
    fetching: Fetching,
    resolve_files: Finder,
    check: Callable[[], None] = lambda: None,
) -> Plan:
    """Writes the slices of a job and says what it found.

    Every row has an index, its place in the manifest; slice k holds the usable items of k·shard_size and up. Neither
    rows nor failures are held in memory. `resolve_files` must know the tenant; `check` is called once a batch and stops
    planning by raising. Raises JobError: `empty_manifest`, `too_many_items`, `unknown_encoder`.
    """
    schema = _schema(request, catalog)
    ledger = Ledger()
    with Uploads(place.store) as uploads:
        packer = MediaPacker(uploads, place.job_id, place.token)
        slices = SliceWriter(uploads, place.job_id, place.token, request.shard_size)
        resolver = MediaResolver(packer, limits.media_bytes, fetching, resolve_files, source.find_members)
        planner = _Planner(ledger, resolver, slices, Wanted.of(request), limits)
        for batch in batches(source.rows):
            check()
            planner.take(batch)
        packer.finish()
        written = slices.finish()
    if planner.count == 0:
        raise JobError("The manifest has no items.", code="empty_manifest")
    schema["items"] = planner.count
    schema["modalities"] = {
        m.value: sum(part.modalities[m] for part in written) for m in Modality if m in request.encoders.chosen()
    }
    schema["plan"] = place.token.hex
    return Plan(
        written,
        schema,
        planner.count,
        failures=ledger,
        failure_count=ledger.failed_items,
        input_bytes=source.bytes,
    )


def _schema(request: PlanRequest, catalog: Catalog) -> dict[str, Any]:
    """What is fixed for a job once it is planned."""
    try:
        specs = {m: catalog.resolve(m, id) for m, id in request.encoders.chosen().items()}
    except InvalidRequestError as error:
        raise JobError(error.message, code=error.error_code) from error
    dimensions = {m.value: spec.dimension for m, spec in specs.items()}
    fitted = [m for m, spec in specs.items() if spec.is_fitted(request.train_encoder)]
    fused = 0 if request.fusion.method is FusionMethod.NONE else request.fusion.dimension or sum(dimensions.values())
    return {
        "shard_size": request.shard_size,
        "encoders": {m.value: {"id": s.id, "dimension": s.dimension, "fitted": m in fitted} for m, s in specs.items()},
        "fitted": [m.value for m in fitted],
        **in_schema({m: spec for m, spec in specs.items() if isinstance(spec, FittedEncoder)}),
        "fusion": request.fusion.model_dump(mode="json", exclude_none=True),
        "dimensions": {**dimensions, "fused": fused},
        **({"reads_text": True} if request.reads_text else {}),
    }


@dataclass(frozen=True)
class Wanted:
    """What a job takes of its items: modalities that are encoded, and words that a language model reads as they are."""

    encoded: list[Modality]
    words: bool

    @classmethod
    def of(cls, request: PlanRequest) -> Self:
        """What a request wants."""
        return cls(list(request.encoders.chosen()), request.reads_text)

    def any_in(self, found: Collection[str]) -> bool:
        """Whether something that is wanted is among these fields of an item."""
        return any(m in found for m in self.encoded) or (self.words and ("text" in found or "messages" in found))

    def __str__(self) -> str:
        return ", ".join([*self.encoded, *(["text", "messages"] if self.words else [])])


class _Planner:
    """Turns batches of rows into planned items and failures."""

    def __init__(self, ledger: Ledger, resolver: MediaResolver, slices: SliceWriter, wanted: Wanted, limits: Limits):
        self._ledger, self._resolver, self._slices, self._limits = ledger, resolver, slices, limits
        self._wanted, self._encoded = wanted, wanted.encoded
        self.count = 0

    def take(self, batch: list[Row]) -> None:
        items = [(index, row, item) for index, row in enumerate(batch, self.count) if (item := self._read(index, row))]
        self.count += len(batch)
        if self.count > self._limits.items:
            raise JobError(f"The manifest has more than {self._limits.items} items.", code="too_many_items")
        self._resolver.look_up(
            {
                reference
                for _, row, item in items
                for m in self._encoded
                if m is not Modality.TEXT and (reference := getattr(item, m)) is not None and m not in row.media
            }
        )
        for index, row, item in items:
            self._plan(index, row, item)

    def _read(self, index: int, row: Row) -> Item | None:
        """The row as a valid item with an id that was not there before; None if there is none, which is recorded."""
        problem = row.problems.get(None)
        item = None
        if problem is None:
            item, problem = _validate(row, self._wanted)
        if item is not None and not self._ledger.is_new(item.id):
            problem = Problem("duplicate_id", f"The id {item.id!r} was used by an earlier item.")
        if problem is not None:
            self._fail(index, _name(row), None, problem)
            return None
        return item

    def _plan(self, index: int, row: Row, item: Item) -> None:
        found: dict[str, Any] = {}
        for modality in MODALITIES:
            reference = getattr(item, modality)
            if reference is None:
                continue
            try:
                found[modality] = self._find(modality, row, reference)
            except ItemError as error:
                self._fail(index, item.id, modality, Problem(error.error_code, error.message))
        if item.messages is not None:
            size = sum(len(message.text.encode()) for message in item.messages)
            if size > self._limits.text_bytes:
                self._fail(index, item.id, None, _too_large(size, self._limits.text_bytes))
                return
            found["messages"] = item.messages
        if not self._wanted.any_in(found):
            self._fail(index, item.id, None, _NOTHING_LEFT)
            return
        rest: dict[str, Any] = {"label": item.labels, "target": item.target, "split": item.split, **found}
        self._slices.write(PlannedItem.model_construct(index=index, id=item.id, metadata=item.metadata, **rest))

    def _find(self, modality: Modality, row: Row, reference: str) -> str | MediaLocation:
        """A modality of an item as workers want it. Raises ItemError."""
        if problem := row.problems.get(modality):
            raise ItemError(problem.message, code=problem.code)
        if modality is not Modality.TEXT:
            if modality not in self._encoded:
                return MediaLocation(ref=reference[:1000])  # nobody will read it; its name is all that is kept
            return self._resolver.locate(reference, row.media.get(modality))
        if len(reference) * 4 > self._limits.text_bytes and len(reference.encode()) > self._limits.text_bytes:
            problem = _too_large(len(reference.encode()), self._limits.text_bytes)
            raise ItemError(problem.message, code=problem.code)
        return reference

    def _fail(self, index: int, item_id: str, modality: Modality | None, problem: Problem) -> None:
        self._ledger.add(ItemFailure(index, item_id, modality, problem.code, problem.message))


def _too_large(size: int, limit: int) -> Problem:
    return Problem("text_too_large", f"The text has {size} bytes; the limit is {limit}.")


def _validate(row: Row, wanted: Wanted) -> tuple[Item | None, Problem | None]:
    # Records for language models often have no ids: they are named by their lines.
    fields = row.fields if "id" in row.fields or not wanted.words else {"id": f"line-{row.line}", **row.fields}
    try:
        item = Item.model_validate(fields)
    except ValidationError as error:
        return None, Problem("invalid_item", in_words(error))
    given = [name for name in (*MODALITIES, "messages") if getattr(item, name) is not None]
    if not wanted.any_in(given):
        return None, Problem("invalid_item", f"The item has none of what this job takes: {wanted}.")
    return item, None


def in_words(error: ValidationError) -> str:
    """The first few things that are wrong with an item, without the item's own values."""
    wrong: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        # What follows the field's name in a location are the members of a union, which say little to a user.
        field = str(detail["loc"][0]) if detail["loc"] else ""
        message = detail["msg"].removeprefix("Value error, ")
        wrong[field] = f"{wrong[field]}, or: {message}" if field in wrong else message
    shown = [f"{field}: {message}" if field else message for field, message in list(wrong.items())[:5]]
    return ("; ".join(shown) + ".")[:1000]


def _name(row: Row) -> str:
    """The id of a row that cannot be used, for the list of errors."""
    id = row.fields.get("id")
    return id if isinstance(id, str) and _USABLE_ID.fullmatch(id) else f"line-{row.line}"
