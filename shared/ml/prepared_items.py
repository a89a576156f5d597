"""Items as an encoder takes them, where training finds them: in memory, in files for other processes, or read anew."""

import dataclasses
import enum
import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file

from shared.errors import JobError
from shared.items import PlannedItem
from shared.ml.encoders.base import TrainableEncoder

#: Reads items as an encoder takes them, in any order; those that cannot be read are left out.
Read = Callable[[TrainableEncoder, Sequence[PlannedItem]], Iterator[tuple[PlannedItem, Any]]]

#: A file of items is about so large.
_FILE_BYTES = 256 * 1024**2
#: The name of the tensor of what tensors are part of, JSON.
_OUTLINES = "outlines"


class PreparedItems:
    """Items as an encoder takes them: kept while there is room; the others are read again each time."""

    def __init__(self, encoder: TrainableEncoder, items: Sequence[PlannedItem], read: Read, room: int):
        """Reads them all once. `items` are then those that could be read; `room` is in bytes."""
        self._encoder, self._read = encoder, read
        self._kept: dict[int, Any] = {}
        self.bytes = 0
        costs: dict[int, int] = {}
        for item, prepared in read(encoder, items):
            costs[item.index] = encoder.cost(prepared)
            size = _bytes_of(prepared)
            if self.bytes + size <= room:
                self._kept[item.index] = prepared
                self.bytes += size
        self.items = [item for item in items if item.index in costs]
        self.costs = [costs[item.index] for item in self.items]

    def take(self, rows: Sequence[int]) -> list[Any]:
        """See shared.ml.tuning.Inputs. Raises JobError (`item_lost`) if one cannot be read any more."""
        chosen = [self.items[row] for row in rows]
        missing = [item for item in chosen if item.index not in self._kept]
        fresh = {item.index: prepared for item, prepared in self._read(self._encoder, missing)} if missing else {}
        if len(fresh) < len(missing):
            raise JobError("An item that was read before cannot be read again.", code="item_lost")
        return [fresh[item.index] if item.index in fresh else self._kept[item.index] for item in chosen]

    def move_to(self, folder: Path, name: str) -> list[str]:
        """Writes what is kept to files of this name, and keeps it no longer. Returns their names."""
        files: list[str] = []
        rows = [row for row, item in enumerate(self.items) if item.index in self._kept]
        while rows:
            chosen: dict[int, Any] = {}
            size = 0
            while rows and size < _FILE_BYTES:
                row = rows.pop()
                chosen[row] = self._kept.pop(self.items[row].index)
                size += _bytes_of(chosen[row])
            files.append(f"{name}-{len(files)}")
            write_items(folder / files[-1], chosen)
        return files


class SharedItems:
    """The items of a `PreparedItems` in another process: what was moved to files, the rest by asking."""

    def __init__(self, costs: Sequence[int], files: Sequence[Path], ask: Callable[[list[int]], Path]):
        """`ask` names a file of rows that are in none of `files`; it is removed once it is read."""
        self.costs, self._ask = costs, ask
        self._files = [ItemFile(path) for path in files]
        self._file_of = {row: file for file in self._files for row in file.rows}

    def take(self, rows: Sequence[int]) -> list[Any]:
        """See shared.ml.tuning.Inputs."""
        missing = [row for row in rows if row not in self._file_of]
        fresh: dict[int, Any] = {}
        if missing:
            path = self._ask(missing)
            fresh = {row: ItemFile(path).read(row) for row in missing}
            path.unlink()
        return [fresh[row] if row in fresh else self._file_of[row].read(row) for row in rows]


class ItemFile:
    """Items in a safetensors file: their tensors, and what they were part of as one more, for a header is short."""

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")
        outlines = json.loads(_as_bytes(self._file.get_tensor(_OUTLINES)))  # type: ignore[no-untyped-call]  # safetensors'
        self._outlines = {int(row): outline for row, outline in outlines.items()}

    @property
    def rows(self) -> list[int]:
        """Those that are in it."""
        return list(self._outlines)

    def read(self, row: int) -> Any:
        """The item as it was written."""
        return _filled(self._outlines[row], self._file.get_tensor)


def write_items(path: Path, items: Mapping[int, Any]) -> None:
    """Writes items by row: arrays, tensors, bytes, what JSON has, lists, sets and dicts of them, and our own
    dataclasses and pydantic models."""
    tensors: dict[str, torch.Tensor] = {}
    outlines = {row: _outline(item, tensors) for row, item in items.items()}
    save_file({**tensors, _OUTLINES: _from_bytes(json.dumps(outlines).encode())}, path)


def _outline(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON in which names stand for tensors, which are put into `tensors`."""
    if isinstance(value, np.ndarray | torch.Tensor):
        name = str(len(tensors))
        # A copy: views of one array would be taken for one tensor under several names.
        tensors[name] = torch.tensor(value) if isinstance(value, np.ndarray) else value.detach().clone().contiguous()
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if isinstance(value, bytes):
        name = str(len(tensors))
        tensors[name] = _from_bytes(value)
        return {"bytes": name}
    if isinstance(value, BaseModel):
        return {"model": _class_of(value), "json": value.model_dump(mode="json")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _outline(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"dataclass": _class_of(value), "fields": fields}
    if isinstance(value, list):
        return [_outline(part, tensors) for part in value]
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, dict):
        keys = {tuple(_class_of(key)) for key in value if isinstance(key, enum.Enum)}
        return {"dict": {name: _outline(part, tensors) for name, part in value.items()}, "keys": [*keys]}
    return value


def _filled(outline: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if isinstance(outline, list):
        return [_filled(part, tensor) for part in outline]
    if not isinstance(outline, dict):
        return outline
    if "fields" in outline or "dict" in outline:
        return _composed(outline, tensor)
    if "model" in outline:
        return _named(outline["model"]).model_validate(outline["json"])
    if "set" in outline:
        return frozenset(outline["set"])
    ((kind, name),) = outline.items()
    makes: dict[str, Callable[[torch.Tensor], Any]] = {"array": torch.Tensor.numpy, "bytes": _as_bytes}
    return makes[kind](tensor(name)) if kind in makes else tensor(name)


def _composed(outline: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> Any:
    """A dataclass or a dict."""
    parts = outline["fields" if "fields" in outline else "dict"]
    filled = {name: _filled(part, tensor) for name, part in parts.items()}
    if "fields" in outline:
        return _named(outline["dataclass"])(**filled)
    for kind in outline["keys"]:
        filled = {_named(kind)(name): part for name, part in filled.items()}
    return filled


def _class_of(value: Any) -> list[str]:
    return [type(value).__module__, type(value).__name__]


def _named(names: Sequence[str]) -> Any:
    module, name = names
    return getattr(importlib.import_module(module), name)


def _from_bytes(data: bytes) -> torch.Tensor:
    return torch.tensor(np.frombuffer(data, np.uint8))


def _as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _bytes_of(prepared: Any) -> int:
    """What an item takes in memory: an array, a tensor, or a list of windows."""
    return sum(part.nbytes for part in prepared) if isinstance(prepared, list) else int(prepared.nbytes)


def numbered(folder: Path, name: str) -> Iterator[Path]:
    """Names for files, one after the other."""
    return (folder / f"{name}-{number}" for number in itertools.count())
