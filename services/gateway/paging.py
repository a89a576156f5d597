"""Lists in parts: one entry more than wanted is read, to know whether there is more."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel

from shared.schemas import Page

T = TypeVar("T", bound=BaseModel)


def page(entries: Sequence[T], limit: int, id_of: Callable[[T], object]) -> Page[T]:
    """The first `limit` of the entries, of which one more was asked for."""
    shown = list(entries[:limit])
    first, last = (str(id_of(shown[0])), str(id_of(shown[-1]))) if shown else (None, None)
    return Page(data=shown, has_more=len(entries) > limit, first_id=first, last_id=last)


def page_behind(entries: Sequence[T], limit: int, after: str | None, id_of: Callable[[T], str]) -> Page[T]:
    """The same of a list that is all in memory."""
    ids = [id_of(entry) for entry in entries]
    start = ids.index(after) + 1 if after in ids else 0
    return page(entries[start : start + limit + 1], limit, id_of)
