"""What a stopped run leaves to the next one: tensors and facts as safetensors with JSON in the header; never pickle."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor


def pack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Tensors and JSON facts as bytes."""
    metadata = {"facts": json.dumps(facts)}
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata)


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What was packed. safetensors reads the metadata of files only, so the header is read here."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    return safetensors.torch.load(data), json.loads(header["__metadata__"]["facts"])


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix, so that several sets of tensors fit into one checkpoint."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
