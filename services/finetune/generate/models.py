"""The language models that a generate worker keeps loaded: base models, and what was tuned on them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from shared.errors import JobError, NotFoundError, TriviumError
from shared.fine_tuning import LANGUAGE_METHODS
from shared.jobs import registry
from shared.ml.language.adapters import ADAPTER, ADAPTER_CONFIG
from shared.ml.language.loading import LanguageModel, load_language_model
from shared.ml.language.tuned import CONFIG, PROJECTOR, TunedConfig, TunedLanguageModel
from shared.ml.models import resident_bytes
from shared.observability import get_logger
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_verified

log = get_logger(__name__)

#: What answering needs of a tuned model; metrics and its card stay in storage.
_FILES = frozenset({ADAPTER, ADAPTER_CONFIG, PROJECTOR, CONFIG})


@dataclass
class _Loaded:
    """A model in memory; `size` is without its base model."""

    id: str
    model: TunedLanguageModel
    size: int
    users: int = 0


class LanguageModelCache:
    """Language models by id, within a memory limit: the least recently used that nobody uses go first. Thread-safe.

    Whoever computes with a model holds `computing` meanwhile: adapters of several models live inside one base model,
    and come and go.
    """

    def __init__(self, context: WorkerContext):
        self.computing = threading.Lock()
        self._context = context
        self._limit = context.settings.worker.model_memory_bytes
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._bases: dict[str, tuple[LanguageModel, int]] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, id: str, tenant: str, control: Control) -> TunedLanguageModel:
        """The model of the catalogue, or the tenant's own; loaded, unless it is in memory.

        It may be dropped at any time, and then reads conversations, but answers no more: see `held`. Raises JobError
        (`model_not_found`, `language_model_unavailable`, and others of loading).
        """
        key = self._key(id, tenant)
        found = self._find(key)
        if found is not None:
            return found
        with self._loading:
            return self._find(key) or self._add(key, id, tenant, control)

    @contextmanager
    def held(self, id: str, tenant: str, control: Control) -> Iterator[TunedLanguageModel]:
        """The model, which stays in memory meanwhile. Raises what `get` raises."""
        key = self._key(id, tenant)
        while True:
            model = self.get(id, tenant, control)
            with self._lock:
                entry = self._loaded.get(key)
                if entry is not None and entry.model is model:
                    entry.users += 1
                    break
        try:
            yield model
        finally:
            with self._lock:
                entry.users -= 1

    def ids(self) -> list[str]:
        """Ids of the loaded models, most recently used last."""
        with self._lock:
            return [entry.id for entry in self._loaded.values()]

    def _key(self, id: str, tenant: str) -> str:
        return id if id in self._context.language_models else f"{tenant}/{id}"

    def _find(self, key: str) -> TunedLanguageModel | None:
        with self._lock:
            if key not in self._loaded:
                return None
            self._loaded.move_to_end(key)
            return self._loaded[key].model

    def _add(self, key: str, id: str, tenant: str, control: Control) -> TunedLanguageModel:
        if id in self._context.language_models:
            model, size = TunedLanguageModel.plain(self._base(id)), 0
        else:
            files = control.patiently(partial(self._files, id, tenant))
            base = self._base(TunedConfig.model_validate_json(files[CONFIG]).language_model)
            before = resident_bytes()
            with self.computing:
                model = TunedLanguageModel.load(files, base)
            size = max(resident_bytes() - before, 0)
        with self._lock:
            self._loaded[key] = _Loaded(id, model, size)
            self._make_room(keep=key)
        log.info("model loaded", model=key, bytes=size)
        return model

    def _base(self, id: str) -> LanguageModel:
        """A base model; there is one for all that were tuned on it."""
        with self._lock:
            if id in self._bases:
                return self._bases[id][0]
        spec, worker = self._context.language_models.get(id), self._context.settings.worker
        if spec is None:
            message = f"The language model {id!r} is not in the catalogue of this worker."
            raise JobError(message, code="language_model_unavailable")
        before = resident_bytes()
        try:
            base = load_language_model(spec, device=worker.device, precision=worker.precision)
        except TriviumError:
            raise
        except Exception as error:
            message = f"The language model {id!r} cannot be loaded: {error}"
            raise JobError(message, code="language_model_unavailable") from error
        with self._lock:
            self._bases[id] = base, max(resident_bytes() - before, 0)
        return base

    def _files(self, id: str, tenant: str) -> Mapping[str, bytes]:
        with self._context.sessions() as session:
            try:
                model = registry.find_model(session, tenant, id)
            except NotFoundError as error:
                raise JobError(error.message, code=error.error_code) from error
            kind, files = model.kind, model.spec["files"]
        if kind not in LANGUAGE_METHODS or CONFIG not in files:
            raise JobError(f"The model {id!r} is no language model but of the kind {kind}.", code="unsuitable_model")
        store = self._context.store
        return {name: read_verified(store, f["key"], f["sha256"]) for name, f in files.items() if name in _FILES}

    def _make_room(self, keep: str) -> None:
        """Drops models, and base models that none stands on any more, until the rest is within the limit."""
        while self._size() > self._limit:
            unused = (key for key, entry in self._loaded.items() if not entry.users and key != keep)
            key = next(unused, None)
            if key is None:
                return
            entry = self._loaded.pop(key)
            with self.computing:
                entry.model.close()
            needed = {other.model.base.spec.id for other in self._loaded.values()}
            self._bases = {id: base for id, base in self._bases.items() if id in needed}
            log.info("model dropped", model=key)

    def _size(self) -> int:
        return sum(e.size for e in self._loaded.values()) + sum(size for _, size in self._bases.values())
