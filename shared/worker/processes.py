"""How a worker shares its cores: some decode, the rest is torch's."""

import os

from shared.settings import WorkerSettings
from shared.worker.decode import DecodePool


def decode_processes(settings: WorkerSettings) -> int:
    """Half the cores unless told otherwise, at least one."""
    return settings.decode_processes or max(1, _cores() // 2)


def torch_threads(settings: WorkerSettings, *, decoding: bool = True) -> int:
    """The cores that decoding leaves, at least one; all of them in a pool that decodes nothing."""
    return settings.torch_threads or max(1, _cores() - (decode_processes(settings) if decoding else 0))


def make_decode_pool(settings: WorkerSettings, target: str) -> DecodePool:
    """Decode processes for `module:function`, started now: before torch is loaded, so that they stay small."""
    return DecodePool(
        target,
        processes=decode_processes(settings),
        seconds=settings.decode_seconds,
        memory_bytes=settings.decode_memory_bytes,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
