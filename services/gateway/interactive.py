"""Items whose vectors a caller waits for: where their contents are, and asking the lanes of their modalities."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from shared.errors import InvalidRequestError, ItemError, TooLargeError
from shared.items import Item, MediaLocation
from shared.jobs.files import locate_files
from shared.lanes.client import LaneClient
from shared.lanes.messages import Encoded, Fault
from shared.planning.media import MediaResolver, enclose
from shared.queues import Modality
from shared.settings import Limits, Settings

#: Uploaded pictures or sounds that one request may name, in bytes together.
STORED_BYTES = 64 * 1024**2
#: What the vectors of one request may take: image tokens of a large model are megabytes.
VECTOR_BYTES = 64 * 1024**2


@dataclass
class Contents:
    """What items hold of each modality by their place in the request, and why some of it cannot be used."""

    found: dict[Modality, dict[int, str | MediaLocation]]
    faults: dict[int, dict[Modality, Fault]] = field(default_factory=dict)

    def blame(self, index: int, modality: Modality, fault: Fault) -> None:
        """A modality of an item cannot be used."""
        self.faults.setdefault(index, {})[modality] = fault


@dataclass(frozen=True)
class Asking:
    """For whom the lanes are asked, until when (Unix time), and how each modality is encoded."""

    tenant: str
    deadline: float
    encoders: Mapping[Modality, str]
    preprocessing: Mapping[str, dict[str, Any]]


class _Enclosing:
    """Keeps media that came in a request where they are: in the message to the lane."""

    def add(self, data: bytes, ref: str) -> MediaLocation:
        return enclose(data, ref)


def locate(
    session: Session,
    tenant: str,
    items: Sequence[Item],
    modalities: Collection[Modality],
    settings: Settings,
    param: str = "items",
) -> Contents:
    """Finds texts, and pictures and sounds by `data:` URI or file id, as jobs do; `param` is the request's field.

    Raises TooLargeError if what is in the request, or what it names, is more than can be waited for, and
    InvalidRequestError (`invalid_unicode`).
    """
    contents, limits = Contents({m: {} for m in modalities}), settings.limits
    media = [m for m in modalities if m is not Modality.TEXT]
    references = {ref for item in items for m in media if (ref := getattr(item, m)) is not None}

    def find(ids: Collection[str]) -> Mapping[str, MediaLocation]:
        return locate_files(session, tenant, ids)

    resolver = MediaResolver(_Enclosing(), limits.media_bytes, settings.fetching, find, lambda _: {})
    resolver.look_up(references)
    for modality, found in contents.found.items():
        for index, item in enumerate(items):
            reference = getattr(item, modality)
            if reference is None:
                continue
            try:
                found[index] = reference if modality is Modality.TEXT else resolver.locate(reference)
            except ItemError as error:
                contents.blame(index, modality, Fault(code=error.error_code, message=error.message))
        _check_size(modality, found.values(), limits, param)
    return contents


def check_vectors(contents: Contents, dimensions: Mapping[Modality, int], param: str) -> None:
    """Raises TooLargeError if the vectors of these contents, by their encoders' dimensions, are more than can be waited
    for; `param` is the request's field."""
    size = sum(4 * dimensions[modality] * len(found) for modality, found in contents.found.items())
    if size > VECTOR_BYTES:
        message = (
            f"The vectors of so many inputs take {size} bytes; {VECTOR_BYTES} are allowed in a request that is waited "
            "for. Send fewer."
        )
        raise TooLargeError(message, param=param)


async def encode(lanes: LaneClient, contents: Contents, asking: Asking) -> dict[Modality, Encoded]:
    """The vectors of each modality's items, in the order in which they were found; what failed is blamed in `contents`.

    Raises what the lanes raise, as soon as one of them does.
    """

    async def ask(modality: Modality, found: dict[int, str | MediaLocation]) -> Encoded:
        return await lanes.encode(
            modality,
            asking.encoders[modality],
            list(found.values()),
            asking.preprocessing.get(modality, {}),
            tenant=asking.tenant,
            deadline=asking.deadline,
        )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {m: group.create_task(ask(m, found)) for m, found in contents.found.items() if found}
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    encoded = {m: task.result() for m, task in tasks.items()}
    for modality, answer in encoded.items():
        places = list(contents.found[modality])
        for row, fault in answer.faults.items():
            contents.blame(places[row], modality, fault)
    return encoded


def _check_size(modality: Modality, contents: Collection[str | MediaLocation], limits: Limits, param: str) -> None:
    try:
        sent = sum(len(one.encode()) if isinstance(one, str) else len(one.data or "") for one in contents)
    except UnicodeEncodeError as error:
        message = "The items hold text that is not valid Unicode (half of a surrogate pair)."
        raise InvalidRequestError(message, code="invalid_unicode", param=param) from error
    if sent > limits.lane_bytes:
        message = (
            f"The items hold {sent} bytes of {modality}; {limits.lane_bytes} are allowed in a request that is waited "
            "for. Send fewer items, or name pictures and sounds by the ids of uploaded files, or send a job."
        )
        raise TooLargeError(message, param=param)
    stored = sum(one.size or 0 for one in contents if isinstance(one, MediaLocation) and one.data is None)
    if stored > STORED_BYTES:
        message = (
            f"The files that the items name have {stored} bytes of {modality}; {STORED_BYTES} are allowed in a request "
            "that is waited for. Send fewer items, or a job."
        )
        raise TooLargeError(message, param=param)
