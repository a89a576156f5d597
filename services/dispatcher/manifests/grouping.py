"""Items from files alone: members that share a stem are one item (WebDataset's convention)."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from services.dispatcher.manifests.members import FIELDS, LABEL, Member, MemberIndex
from shared.items import Item, MediaLocation
from shared.planning import Problem, Row
from shared.queues import Modality


def read_groups(index: MemberIndex, text_bytes: int) -> Iterator[Row]:
    """A row per stem, which is its id: `.txt` is its text, `.cls` its label, `.json` any fields (those that items do
    not have become metadata), pictures and sounds its media."""
    for line, (stem, members) in enumerate(index.groups(), 1):
        yield _Group(stem, members, text_bytes).row(line)


class _Group:
    """One item in the making."""

    def __init__(self, stem: str, members: list[Member], text_bytes: int):
        self._fields: dict[str, Any] = {"id": stem}
        self._media: dict[Modality, bytes | MediaLocation] = {}
        self._problems: dict[Modality | None, Problem] = {}
        self._text_bytes = text_bytes
        self._size = sum(len(member.content or b"") for member in members)
        # Fields from JSON first: a member says more about its item than a name in there.
        for member in sorted(members, key=lambda m: m.role != FIELDS):
            self._add(member)

    def row(self, line: int) -> Row:
        return Row(line, self._fields, self._media, self._problems, self._size)

    def _add(self, member: Member) -> None:
        if member.role == FIELDS:
            self._add_fields(member)
        elif member.role == LABEL:
            self._fields["label"] = (member.content or b"").decode(errors="replace").strip()
        elif member.role == Modality.TEXT:
            self._add_text(member)
        elif member.role is not None:
            self._add_media(Modality(member.role), member)

    def _add_fields(self, member: Member) -> None:
        try:
            values = from_json(member.content or b"", allow_inf_nan=False)
        except ValueError as error:
            self._problems[None] = Problem("invalid_json", f"{member.name} is not JSON: {error}.")
            return
        if not isinstance(values, dict):
            self._problems[None] = Problem("invalid_item", f"{member.name} is JSON, but not an object.")
            return
        others = {name: value for name, value in values.items() if name not in Item.model_fields}
        self._fields |= {name: value for name, value in values.items() if name in Item.model_fields}
        if others:
            given = self._fields.get("metadata")
            self._fields["metadata"] = others | (given if isinstance(given, dict) else {})

    def _add_text(self, member: Member) -> None:
        self._fields["text"] = ""
        if member.content is None:
            message = f"The text has {member.location.size} bytes; the limit is {self._text_bytes}."
            self._problems[Modality.TEXT] = Problem("text_too_large", message)
            return
        try:
            self._fields["text"] = member.content.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            self._problems[Modality.TEXT] = Problem("corrupt_media", f"{member.name} is not UTF-8: {error.reason}.")

    def _add_media(self, modality: Modality, member: Member) -> None:
        if modality in self._media:
            message = f"The item has more than one {modality}: {self._fields[modality]}, {member.name}."
            self._problems[modality] = Problem("invalid_item", message)
        self._fields[modality] = member.name
        self._media[modality] = member.location
