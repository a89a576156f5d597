"""The generate pool: language models answer the shards of jobs, and those who wait."""

import os
from collections.abc import Mapping

from services.finetune.generate.lane import ChatLane
from services.finetune.generate.models import LanguageModelCache
from services.finetune.generate.predict import Generate
from shared.ml.device import configure_threads
from shared.queues import Stage
from shared.worker.context import Handler, LaneHandler, WorkerContext
from shared.worker.processes import torch_threads


class GeneratePool:
    """What the generate pool brings to the shard loop (see shared.worker.context.Pool)."""

    def __init__(self, context: WorkerContext):
        # No decode processes here.
        threads = torch_threads(context.settings.worker, decoding=False)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        configure_threads(threads)
        self._models = LanguageModelCache(context)
        self.handlers: Mapping[Stage, Handler] = {Stage.GENERATE: Generate(context, self._models)}
        self.lane: LaneHandler | None = ChatLane(self._models)

    def loaded_models(self) -> list[str]:
        """Ids of the language models in memory."""
        return self._models.ids()

    def close(self) -> None:
        """Nothing to end."""


def make_pool(context: WorkerContext) -> GeneratePool:
    """The generate pool."""
    return GeneratePool(context)
