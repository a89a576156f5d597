"""The trained models that a fusion worker keeps loaded."""

import threading
from collections import OrderedDict

from shared.errors import JobError, NotFoundError
from shared.jobs import registry
from shared.ml.trained import TrainedModel
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_verified

#: Trained models are small; the least recently used beyond this many are dropped.
MOST = 16

#: What prediction needs of a model; plots and logs stay in storage.
_FILES = frozenset({"model.safetensors", "config.json"})


class TrainedModels:
    """Models by id. Thread-safe."""

    def __init__(self, context: WorkerContext):
        self._context = context
        self._loaded: OrderedDict[str, TrainedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, id: str, tenant: str, control: Control) -> TrainedModel:
        """The tenant's model. Raises JobError (`model_not_found`)."""
        with self._lock:
            key = f"{tenant}/{id}"
            if key not in self._loaded:
                self._loaded[key] = control.patiently(lambda: self._load(id, tenant))
                if len(self._loaded) > MOST:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def ids(self) -> list[str]:
        """Ids of the loaded models."""
        return [key.partition("/")[2] for key in list(self._loaded)]

    def _load(self, id: str, tenant: str) -> TrainedModel:
        with self._context.sessions() as session:
            try:
                files = registry.find_model(session, tenant, id).spec["files"]
            except NotFoundError as error:
                raise JobError(error.message, code=error.error_code) from error
        store = self._context.store
        return TrainedModel.load(
            {name: read_verified(store, f["key"], f["sha256"]) for name, f in files.items() if name in _FILES}
        )
