"""A pool in which marked items do harm: `python -m tests.chaos.poison services.image`.

An item whose bytes end in a mark harms the process that decodes it, or, with `POISON:worker`, the worker itself.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from shared.settings import WorkerSettings
from shared.worker import processes
from shared.worker.decode import DecodePool


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    while True:
        pass


def _hoard() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(16 * 1024**2))


def _exit() -> None:
    os._exit(0)


#: What a mark does to the process that decodes, and the code with which its item then fails.
HARM: dict[bytes, tuple[Callable[[], None], str]] = {
    b"POISON:segfault": (_segfault, "decode_crashed"),
    b"POISON:hang": (_hang, "decode_timeout"),
    b"POISON:memory": (_hoard, "media_too_large"),
    b"POISON:exit": (_exit, "decode_crashed"),
}
WORKER_MARK = "POISON:worker"


def decode_image(data: bytes, options: dict[str, Any]) -> Any:
    """The image pool's decoder, harmed by marked bytes."""
    _harm(data)
    return import_module("services.image.preprocess").decode(data, options)


def decode_audio(data: bytes, options: dict[str, Any]) -> Any:
    """The audio pool's decoder, harmed by marked bytes."""
    _harm(data)
    return import_module("services.audio.preprocess").decode(data, options)


if sys.argv[1:] and sys.argv[1].startswith("tests.chaos.poison:decode_"):
    # In a decode process, as there: what the decoder imports is loaded before memory is limited.
    import_module(f"services.{sys.argv[1].rpartition('_')[2]}.preprocess")


def _harm(data: bytes) -> None:
    for mark, (harm, _) in HARM.items():
        if data.endswith(mark):
            harm()


def main() -> None:
    """Runs the pool's worker with a decoder that can be harmed, and a text encoder that can be too."""
    pool = sys.argv[1].rpartition(".")[2]
    make = processes.make_decode_pool

    def make_harmed(settings: WorkerSettings, target: str) -> DecodePool:
        return make(settings, f"tests.chaos.poison:decode_{pool}")

    processes.make_decode_pool = make_harmed
    from shared.ml.encoders.hashing import HashingEncoder

    preprocess = HashingEncoder.preprocess

    def harmed(self: HashingEncoder, media: Any) -> bytes:
        if isinstance(media, str) and media.endswith(WORKER_MARK):
            os.kill(os.getpid(), signal.SIGKILL)
        return preprocess(self, media)

    HashingEncoder.preprocess = harmed  # type: ignore[method-assign]
    runpy.run_module(sys.argv[1], run_name="__main__")


if __name__ == "__main__":
    main()
