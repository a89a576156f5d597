"""The models that a worker keeps loaded: least recently used go first when memory runs short."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from shared.ml.encoders.base import Encoder
from shared.observability import get_logger

log = get_logger(__name__)


class ModelCache:
    """Loaded encoders by key, within a memory limit. Thread-safe: one model is loaded at a time."""

    def __init__(self, limit_bytes: int):
        self._limit = limit_bytes
        self._loaded: OrderedDict[str, tuple[Encoder, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, load: Callable[[], Encoder]) -> Encoder:
        """The encoder of this key, loaded with `load` unless it is in memory. What `load` raises passes through."""
        with self._lock:
            if key not in self._loaded:
                before = _resident_bytes()
                encoder = load()
                size = max(_resident_bytes() - before, 0)
                self._make_room(size)
                self._loaded[key] = (encoder, size)
                log.info("model loaded", model=key, bytes=size)
            self._loaded.move_to_end(key)
            return self._loaded[key][0]

    def ids(self) -> list[str]:
        """Ids of the loaded encoders, most recently used last."""
        return [encoder.spec.id for encoder, _ in list(self._loaded.values())]

    def _make_room(self, size: int) -> None:
        while self._loaded and size + sum(held for _, held in self._loaded.values()) > self._limit:
            key, _ = self._loaded.popitem(last=False)
            log.info("model dropped", model=key)


def _resident_bytes() -> int:
    """Memory of this process; what a model adds to it is measured, since nobody can compute it for every library."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
