"""The same result for the same seed: seeds that follow from each other, and torch held to algorithms that repeat."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import numpy as np
import torch
from threadpoolctl import threadpool_limits

#: Up to so many numbers in the data one thread is as quick as several, and much quicker where others compute too.
ONE_THREAD = 10_000_000


def derived_seed(*parts: int | str) -> int:
    """A seed that depends on all parts: the run's seed, what it is for, the epoch."""
    numbers = [crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    # With their count, since zeros at the end would change nothing.
    return int(np.random.SeedSequence([len(parts), *numbers]).generate_state(1, np.uint64)[0])


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded with all parts."""
    return np.random.default_rng(derived_seed(*parts))


@contextmanager
def repeatable(device: torch.device, numbers: int = ONE_THREAD) -> Iterator[None]:
    """Within it torch repeats itself bit by bit, on one machine with one number of threads; after it all is as before.

    With only so many `numbers` in the data that threads would rather wait for each other, it is one thread. On CUDA
    torch repeats itself as far as it can: an operation that cannot is warned of.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(1 if numbers < ONE_THREAD else threads), _deterministic(device):
        torch.set_num_threads(1 if numbers < ONE_THREAD else threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # whose attribute has no type
    filling = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
        # For the sake of code that reads memory before it writes it, which costs training a twentieth of its speed.
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filling
