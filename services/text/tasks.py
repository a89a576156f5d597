"""What the text pool does with a shard: texts to vectors, and Word2Vec fitted on a job's own texts."""

from concurrent.futures import Future
from typing import Any

from services.text.fit import FitWord2Vec
from services.text.preprocess import decode
from shared.errors import ItemError
from shared.ml.pool import ExtractionPool
from shared.queues import Modality
from shared.worker.context import WorkerContext


class TextDecoder:
    """Cleans texts where it is called: unlike media, text is decoded by nothing that could crash or hang."""

    def submit(self, data: bytes, options: dict[str, Any], *, urgent: bool = False) -> "Future[str]":  # noqa: ARG002
        """A future that is done already."""
        future: Future[str] = Future()
        try:
            future.set_result(decode(data, options))
        except ItemError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing to end."""


def make_pool(context: WorkerContext) -> ExtractionPool:
    """The text pool."""
    return ExtractionPool(context, Modality.TEXT, TextDecoder(), {"word2vec": FitWord2Vec(context)})
