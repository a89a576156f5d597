"""The same result for the same seed: seeds that follow from each other, and torch held to algorithms that repeat."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """A seed that depends on all parts: the run's seed, what it is for, the epoch."""
    numbers = [crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded with all parts."""
    return np.random.default_rng(derived_seed(*parts))


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it torch repeats itself bit by bit, on one machine with one number of threads; after it all is as before.

    On CUDA it does so as far as it can: an operation that cannot is warned of.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
