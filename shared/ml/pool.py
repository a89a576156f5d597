"""An extraction pool: one modality's handlers, the models it keeps, and its decoder."""

import os
from collections.abc import Mapping
from typing import Protocol

from shared.ml.decoding import Decoder
from shared.ml.encode_lane import EncodeLane
from shared.ml.extraction import Extraction
from shared.ml.fitting import Fit
from shared.ml.models import ModelCache
from shared.ml.train_on_labels import TrainOnLabels
from shared.queues import Modality, Stage
from shared.worker.context import Handler, LaneHandler, WorkerContext
from shared.worker.processes import torch_threads


class ClosableDecoder(Decoder, Protocol):
    """A decoder that holds processes."""

    def close(self) -> None:
        """Ends them."""
        ...


class ExtractionPool:
    """What an extraction service brings to the shard loop (see shared.worker.context.Pool)."""

    def __init__(
        self,
        context: WorkerContext,
        modality: Modality,
        decoder: ClosableDecoder,
        fits: Mapping[str, Handler] | None = None,
    ):
        """`fits`: who fits the encoders of a loader, if they are not trained on labels."""
        threads = torch_threads(context.settings.worker)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from shared.ml.device import configure_threads

        configure_threads(threads)
        self._models = ModelCache(context.settings.worker.model_memory_bytes)
        self._decoder = decoder
        extraction = Extraction(context, modality, decoder, self._models)
        fit = Fit(context, modality, TrainOnLabels(context, modality, extraction), fits or {})
        self.handlers: Mapping[Stage, Handler] = {Stage(modality.value): extraction, Stage.FIT: fit}
        self.lane: LaneHandler | None = EncodeLane(context, modality, decoder, self._models)

    def loaded_models(self) -> list[str]:
        """Ids of the encoders in memory."""
        return self._models.ids()

    def close(self) -> None:
        """Ends the decode processes."""
        self._decoder.close()
