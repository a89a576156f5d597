"""What it costs to decode where a crash is survivable: images per second in this process, and in decode processes.

    python tests/benchmarks/decoding.py [images]

The same JPEGs with the default image encoder's options, in rounds that alternate; the best round counts.
"""

import io
import sys
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from PIL import Image

from services.image.preprocess import decode
from shared.worker.decode import DecodePool

TARGET = "services.image.preprocess:decode"
OPTIONS = {"resize": 232, "crop": 224, "interpolation": "bilinear"}
ROUNDS = 5
#: Under way at once, as in extraction.
DECODING = 8


def jpegs(count: int) -> list[bytes]:
    """Pictures of 500 x 375, coarse patterns with noise."""
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse, fine = (
            Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
            for h, w in ((6, 8), (375, 500))
        )
        target = io.BytesIO()
        Image.blend(coarse, fine, 0.1).save(target, "JPEG", quality=88)
        files.append(target.getvalue())
    return files


def in_this_process(files: list[bytes]) -> None:
    """One after the other."""
    for data in files:
        decode(data, OPTIONS)


def in_processes(pool: DecodePool) -> Callable[[list[bytes]], None]:
    """As extraction does it."""

    def run(files: list[bytes]) -> None:
        running = deque()
        for data in files:
            running.append(pool.submit(data, OPTIONS))
            if len(running) >= DECODING:
                running.popleft().result()
        for future in running:
            future.result()

    return run


def main(count: int) -> None:
    """Prints a line a way."""
    files = jpegs(count)
    pools = {n: DecodePool(TARGET, processes=n, seconds=20, memory_bytes=2 * 1024**3) for n in (1, 2)}
    ways = {"in this process": in_this_process} | {
        f"{n} decode process{'es' * (n > 1)}": in_processes(pool) for n, pool in pools.items()
    }
    best = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way(files[:DECODING])  # the processes have started
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way(files)
            best[name] = min(best[name], time.perf_counter() - began)
    for name, seconds in best.items():
        print(f"{name:20}{count / seconds:8.0f} images/s  x{best['in this process'] / seconds:.2f}")
    for pool in pools.values():
        pool.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
