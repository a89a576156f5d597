"""What the audio pool does with a shard: sounds to vectors."""

from shared.ml.pool import ExtractionPool
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.processes import make_decode_pool


def make_pool(context: WorkerContext) -> ExtractionPool:
    """Sounds are decoded in processes of their own."""
    decoder = make_decode_pool(context.settings.worker, "services.audio.preprocess:decode")
    return ExtractionPool(context, Modality.AUDIO, decoder)
