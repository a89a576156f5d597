"""The models that a worker keeps loaded: least recently used go first when memory runs short."""

import resource
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shared.catalog import EncoderSpec, FittedEncoder
from shared.errors import JobError, TriviumError
from shared.ml.encoders.base import Encoder
from shared.observability import get_logger
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_verified

log = get_logger(__name__)


class ModelCache:
    """Loaded encoders by key, within a memory limit. Thread-safe: one model is loaded at a time."""

    def __init__(self, limit_bytes: int):
        self._limit = limit_bytes
        self._loaded: OrderedDict[str, tuple[Encoder, int]] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def get(self, key: str, load: Callable[[], Encoder]) -> Encoder:
        """The encoder of this key, loaded with `load` unless it is in memory. What `load` raises passes through.

        Others that are in memory can be had meanwhile.
        """
        encoder = self._find(key)
        if encoder is not None:
            return encoder
        with self._loading:
            return self._find(key) or self._add(key, load)

    def keys(self) -> list[str]:
        """Keys of the loaded encoders, most recently used last."""
        with self._lock:
            return list(self._loaded)

    def ids(self) -> list[str]:
        """Ids of the loaded encoders, most recently used last."""
        with self._lock:
            return [encoder.spec.id for encoder, _ in self._loaded.values()]

    def _find(self, key: str) -> Encoder | None:
        with self._lock:
            if key not in self._loaded:
                return None
            self._loaded.move_to_end(key)
            return self._loaded[key][0]

    def _add(self, key: str, load: Callable[[], Encoder]) -> Encoder:
        before = resident_bytes()
        encoder = load()
        size = max(resident_bytes() - before, 0)
        with self._lock:
            self._make_room(size)
            self._loaded[key] = (encoder, size)
        log.info("model loaded", model=key, bytes=size)
        return encoder

    def _make_room(self, size: int) -> None:
        while self._loaded and size + sum(held for _, held in self._loaded.values()) > self._limit:
            key, _ = self._loaded.popitem(last=False)
            log.info("model dropped", model=key)


def load_on_worker(context: WorkerContext, spec: EncoderSpec, control: Control) -> Encoder:
    """The encoder of a catalogue entry, or one that a job made, from its files. Raises JobError."""
    from shared.ml.encoders.loading import load_encoder

    worker = context.settings.worker
    try:
        if not isinstance(spec, FittedEncoder):
            return load_encoder(spec, device=worker.device, precision=worker.precision)
        with tempfile.TemporaryDirectory() as folder:
            download_model(context, spec, Path(folder), control)
            return load_encoder(spec, device=worker.device, precision=worker.precision, model_path=Path(folder))
    except TriviumError:
        raise
    except Exception as error:
        message = f"The encoder {spec.id!r} cannot be loaded: {error}"
        raise JobError(message, code="encoder_unavailable") from error


def download_model(context: WorkerContext, model: FittedEncoder, folder: Path, control: Control) -> None:
    """Writes the files of a model into `folder`, checked."""
    for name, file in model.files.items():
        data = control.patiently(partial(read_verified, context.store, file.key, file.sha256))
        (folder / Path(name).name).write_bytes(data)


def resident_bytes() -> int:
    """Memory of this process; what a model adds to it is measured, since nobody can compute it for every library."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
