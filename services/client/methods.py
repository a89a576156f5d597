"""How a method of a face is declared: by the function that builds its request or flow, and how the face performs it.

So each method's parameters, types and documentation are written once, for `Client` and `AsyncClient` alike.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Resource:
    """A part of a client, such as `client.jobs`."""

    def __init__(self, wire: Any):
        self._wire = wire


class Method(Generic[P, R]):
    """A method that takes what `build` takes and returns what `perform(wire, …)` makes of what `build` returns."""

    def __init__(self, build: Callable[P, Any], perform: Callable[[Any, Any], R]):
        self._build = build
        self._perform = perform
        self.__doc__ = build.__doc__

    def __get__(self, resource: Any, _owner: type) -> Callable[P, R]:
        """The method, bound to the wire of the client or part of it that it is called on."""

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._perform(resource._wire, self._build(*args, **kwargs))

        return method
