"""Computing by turns: what takes many steps lets go of the language models after each."""

import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def in_turns(steps: Iterator[T], computing: threading.Lock) -> Iterator[T]:
    """The same steps, each made while `computing` is held."""
    end = object()
    while True:
        with computing:
            step = next(steps, end)
        if step is end:
            return
        yield step  # type: ignore[misc]  # not the end
