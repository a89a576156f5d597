"""What the image pool does with a shard: pictures to vectors."""

from shared.ml.pool import ExtractionPool
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.processes import make_decode_pool


def make_pool(context: WorkerContext) -> ExtractionPool:
    """Pictures are decoded in processes of their own."""
    decoder = make_decode_pool(context.settings.worker, "services.image.preprocess:decode")
    return ExtractionPool(context, Modality.IMAGE, decoder)
