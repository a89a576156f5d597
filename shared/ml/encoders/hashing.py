"""The deterministic encoder for tests of the engine, for all three modalities: no weights, no torch, no rounding."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.catalog import EncoderSpec
from shared.ml.encoders.base import Media, Vectors
from shared.ml.encoders.loading import fingerprint_of


class HashingEncoder:
    """Content to vector through BLAKE2b and SHAKE-256: multiples of 2⁻¹⁵ in [-1, 1), byte-equal on every machine.

    Options: `decode`, the decode options of its modality.
    """

    def __init__(self, spec: EncoderSpec, *_: object):
        self.spec = spec
        self.dimension = spec.dimension
        self.fingerprint = fingerprint_of("", "exact", {"loader": "hashing", "dimension": spec.dimension})
        self.decode_options: dict[str, Any] = dict(spec.options.get("decode", {}))

    def preprocess(self, media: Media) -> bytes:
        """The content's 64-byte BLAKE2b digest; an array's shape and dtype count as content."""
        if isinstance(media, str):
            return hashlib.blake2b(media.encode()).digest()
        array = np.ascontiguousarray(media, media.dtype.newbyteorder("<"))
        return hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).digest()

    def cost(self, _prepared: bytes) -> int:
        """Every item costs the same."""
        return 1

    def encode(self, batch: Sequence[bytes]) -> Vectors:
        """Digests to float32 [len(batch), dimension]."""
        stream = b"".join(hashlib.shake_256(digest).digest(2 * self.dimension) for digest in batch)
        numbers = np.frombuffer(stream, "<i2").reshape(len(batch), self.dimension)
        return numbers.astype(np.float32) / np.float32(32768)
