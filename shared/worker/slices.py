"""Reading what planning wrote (slices of items) and what shards wrote for each other (safetensors)."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from shared.errors import TriviumError
from shared.items import PlannedItem
from shared.storage.objects import ObjectStore

Arrays = dict[str, NDArray[Any]]


class CorruptObjectError(TriviumError):
    """An object's bytes are not those that its row names."""

    code = "corrupt_object"


def read_verified(store: ObjectStore, key: str, sha256: str) -> bytes:
    """The object that a row names. Raises CorruptObjectError if its bytes are not what the row says."""
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptObjectError(f"The object {key!r} does not have the sha256 that its row names.")
    return data


def read_slice(store: ObjectStore, spec: Mapping[str, Any]) -> list[PlannedItem]:
    """The items of a shard, from its spec `{"slice": {"key", "sha256"}}`."""
    data = read_verified(store, spec["slice"]["key"], spec["slice"]["sha256"])
    return [PlannedItem.model_validate(json.loads(line)) for line in data.splitlines() if line]


def pack(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Arrays as a safetensors object."""
    return bytes(save(arrays, metadata=dict(metadata)))


def unpack(data: bytes) -> Arrays:
    """The arrays of a safetensors object."""
    return {name: np.asarray(array) for name, array in load(data).items()}
