"""Times the default image encoder against the plain torchvision loop, on the same JPEGs in one process.

    python tests/benchmarks/image_encoder.py [images] [threads]

Prints images per second (best of the rounds, which alternate) for the whole path from bytes to vectors and for the
model alone, the ratios, and how far the vectors differ.
"""

import io
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from services.image.preprocess import decode
from shared.catalog import load_catalog
from shared.ml.device import configure_threads
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.batching import encode_all
from shared.ml.encoders.loading import load_encoder, load_packaged_weights, resolve_source
from shared.ml.torchvision_shim import make_torchvision_importable

ROUNDS = 5
BATCH = 32


def jpegs(count: int) -> list[bytes]:
    """Pictures of 500 x 375, coarse patterns with noise, always the same."""
    chance = np.random.default_rng(0)
    files = []
    for _ in range(count):
        layers = [chance.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((6, 8), (375, 500))]
        coarse, fine = (Image.fromarray(layer).resize((500, 375), Image.Resampling.BICUBIC) for layer in layers)
        buffer = io.BytesIO()
        Image.blend(coarse, fine, 0.1).save(buffer, "JPEG", quality=88)
        files.append(buffer.getvalue())
    return files


class PlainLoop:
    """What the documentation of torchvision shows: open, transform, stack, run."""

    def __init__(self) -> None:
        from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

        path = resolve_source(load_catalog()["mobilenet_v2"])
        assert path is not None
        self._model = mobilenet_v2()
        self._model.load_state_dict(load_packaged_weights(path))
        self._model.classifier = torch.nn.Identity()
        self._model.eval()
        self._transforms = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()

    def preprocess(self, files: list[bytes]) -> list[torch.Tensor]:
        return [self._transforms(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]

    def encode(self, images: list[torch.Tensor]) -> Vectors:
        with torch.no_grad():
            parts = [self._model(torch.stack(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
        return np.concatenate([part.numpy() for part in parts])

    def run(self, files: list[bytes]) -> Vectors:
        return self.encode(self.preprocess(files))


def run(encoder: Encoder, files: list[bytes], **options: bool) -> Vectors:
    """The whole path of an image: bytes, pixels, batches, vectors."""
    decoded = [decode(data, encoder.decode_options | options) for data in files]
    return encode_all(encoder, [encoder.preprocess(pixels) for pixels in decoded])[0]


def time_all(runs: dict[str, Callable[[], Vectors]], count: int) -> None:
    """Prints the rate of each, its ratio to the first, and its lowest cosine with the first."""
    vectors = {name: call() for name, call in runs.items()}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    first = next(iter(runs))
    for name, seconds in best.items():
        one, other = vectors[first], vectors[name]
        cosine = np.min((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))
        difference = np.abs(one - other).max()
        print(
            f"{name:14} {count / seconds:7.1f} images/s  {best[first] / seconds:5.2f} x   "
            f"largest difference {difference:.1e}   least cosine {cosine:.5f}"
        )


def main(count: int = 128, threads: int = 2) -> None:
    configure_threads(threads)
    make_torchvision_importable()
    spec, plain = load_catalog()["mobilenet_v2"], PlainLoop()
    fp32, bf16 = (load_encoder(spec, device="cpu", precision=precision) for precision in ("fp32", "bf16"))
    files = jpegs(count)
    print(f"{count} images, {threads} threads; bytes to vectors")
    whole = {"torchvision": partial(plain.run, files)}
    whole |= {"trivium fp32": partial(run, fp32, files), "trivium bf16": partial(run, bf16, files)}
    time_all(whole, count)
    print("the model alone")
    tensors, pixels = plain.preprocess(files), [decode(data, fp32.decode_options) for data in files]
    alone: dict[str, Callable[[], Vectors]] = {"torchvision": partial(plain.encode, tensors)}
    alone |= {f"trivium {name}": partial(encode, e, pixels) for name, e in (("fp32", fp32), ("bf16", bf16))}
    time_all(alone, count)


def encode(encoder: Encoder, pixels: list[np.ndarray]) -> Vectors:
    return encode_all(encoder, [encoder.preprocess(image) for image in pixels])[0]


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
