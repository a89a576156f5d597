"""Times the default text encoder against sentence-transformers' own `encode`, on the same sentences in one process.

    python tests/benchmarks/text_encoder.py [sentences] [threads]

Prints sentences per second (best of the rounds, which alternate), the ratios, and how far the vectors differ.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from shared.catalog import load_catalog
from shared.ml.device import configure_threads
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.batching import encode_all
from shared.ml.encoders.loading import load_encoder, resolve_source
from shared.ml.torchvision_shim import make_torchvision_importable

ROUNDS = 5
WORDS = """
    the a of and to in is was for on with as by at from he she it they we this that which river market winter paper
    engine garden doctor signal mountain kitchen window teacher summer station bridge letter coffee machine quickly
    slowly bright heavy green ancient modern walked measured answered painted carried opened reached thought
"""


def sentences(count: int) -> list[str]:
    """Sentences of 4 to 60 words, short ones more often, always the same."""
    rng = np.random.default_rng(0)
    words = WORDS.split()
    lengths = np.clip(rng.lognormal(2.6, 0.6, count), 4, 60).astype(int)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def encode(encoder: Encoder, texts: list[str]) -> Vectors:
    """The whole path of a text: tokens, batches, vectors."""
    return encode_all(encoder, [encoder.preprocess(text) for text in texts])[0]


def main(count: int = 1000, threads: int = 2) -> None:
    configure_threads(threads)
    make_torchvision_importable()
    from sentence_transformers import SentenceTransformer

    spec = load_catalog()["all-minilm-l6-v2"]
    reference = SentenceTransformer(str(resolve_source(spec)), device="cpu")
    fp32, bf16 = (load_encoder(spec, device="cpu", precision=precision) for precision in ("fp32", "bf16"))
    texts = sentences(count)
    runs: dict[str, Callable[[], Vectors]] = {
        "sentence-transformers": lambda: np.asarray(reference.encode(texts, show_progress_bar=False)),
        "trivium fp32": lambda: encode(fp32, texts),
        "trivium bf16": lambda: encode(bf16, texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    vectors = {name: run() for name, run in runs.items()}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    theirs = vectors["sentence-transformers"]
    for name, times in seconds.items():
        ratio = float(np.median(np.array(seconds["sentence-transformers"]) / np.array(times)))
        cosine = float((vectors[name] * theirs).sum(1).min())
        print(
            f"{name:22} {count / min(times):8.0f} sentences/s   {ratio:5.2f} x   "
            f"largest difference {np.abs(vectors[name] - theirs).max():.1e}   least cosine {cosine:.6f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
