"""What a batch does with a request of its endpoint: one file each beside this one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from services.dispatcher.batches.chat import Chat
from services.dispatcher.batches.embeddings import Embeddings
from services.dispatcher.batches.lines import BatchLine
from shared import batches as shapes
from shared.planning import Row
from shared.queues import Stage


class Endpoint(Protocol):
    """How requests become items of a job, and what its shards left becomes their responses.

    Request k's items follow those of request k-1, so that the input file says which results are whose.
    """

    #: The stage whose shards hold the results.
    stage: Stage

    def rows(self, request: BatchLine) -> Sequence[Row]:
        """The items of a request, at least one; how many depends on its body alone."""
        ...

    def read(self, data: bytes) -> Mapping[int, Any]:
        """What a shard wrote, by the index of the item: its result, or a Fault."""
        ...

    def answer(self, request: BatchLine, results: Sequence[Any]) -> tuple[dict[str, Any], int, int]:
        """The body of the response to a request whose items all have results; its tokens, in and out."""
        ...


_ENDPOINTS: dict[str, Callable[[Mapping[str, Any]], Endpoint]] = {
    shapes.Endpoint.EMBEDDINGS: Embeddings,
    shapes.Endpoint.CHAT: Chat,
}


def endpoint_of(request: Mapping[str, Any]) -> Endpoint:
    """That of a batch, from the request of its job."""
    return _ENDPOINTS[request["batch"]["endpoint"]](request)
