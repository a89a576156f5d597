"""The kinds of jobs that run during the chaos: each is the same job every time, so that its outcome can be compared."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos import training
from tests.chaos.content import data_uri, picture, sentence, sound

_HASHING = {"text": "hash-text", "image": "hash-image", "audio": "hash-audio"}

#: From a generator to the fields of a Kind.
Maker = Callable[[np.random.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One job: what is submitted, inline (`items`) or as a file (`filename`, `content`), and how.

    `given`: what its request has of the foundation (see `make_foundation`): `features`, `model`.
    """

    name: str
    options: Mapping[str, Any]
    items: list[dict[str, Any]] | None = None
    filename: str = ""
    content: bytes = b""
    tenant: str = "default"
    tags: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()


def make_kinds() -> list[Kind]:
    """All kinds, in variants of other content."""
    features: tuple[Maker, ...] = (
        _inline_mixed, _inline_planned_later, _jsonl, _tar, _zip, _parquet, _word2vec, _all_bad, _cancelled,
    )  # fmt: skip
    return [
        *(_kind(maker, variant, ("other", "default")[variant]) for variant in range(2) for maker in features),
        *(_kind(maker, 0, "default") for maker in training.MAKERS),
    ]


def make_foundation() -> dict[str, Kind]:
    """What jobs on a feature set and with a model need, in the order in which it is made: `features`, `model`."""
    return {name: _kind(maker, 0, "default") for name, maker in training.FOUNDATION.items()}


def _kind(maker: Maker, variant: int, tenant: str) -> Kind:
    name = maker.__name__.strip("_")
    random = np.random.default_rng([variant, *name.encode()])
    return Kind(name=f"{name.replace('_', ' ')} {variant}", tenant=tenant, **maker(random))


def _inline_mixed(random: np.random.Generator) -> dict[str, Any]:
    """Text, pictures and sounds in the request, some of them broken; planned by the gateway."""
    items: list[dict[str, Any]] = []
    for i in range(24):
        item: dict[str, Any] = {"id": f"item-{i}", "text": sentence(random), "label": f"class-{i % 3}"}
        if i % 2:
            item["image"] = data_uri("image/png", b"\x89PNG broken" if i == 5 else picture(random, 12))
        if i % 3 == 0:
            item["audio"] = data_uri("audio/wav", b"RIFF" if i == 9 else sound(random, 400))
        if i == 7:
            item = {"id": "item-7", "text": "  "}
        items.append(item)
    return {"items": items, "options": {"encoders": _HASHING, "shard_size": 4}}


def _inline_planned_later(random: np.random.Generator) -> dict[str, Any]:
    """Texts over 64 KiB in all: planned by the dispatcher."""
    items = [{"id": f"item-{i}", "text": sentence(random, 60), "split": "train"} for i in range(240)]
    return {"items": items, "options": {"encoders": {**_HASHING, "image": None, "audio": None}, "shard_size": 32}}


def _jsonl(random: np.random.Generator) -> dict[str, Any]:
    """A JSONL file with a line that is no JSON and an id that comes twice."""
    lines = [json.dumps({"id": f"line-{i}", "text": sentence(random), "metadata": {"n": i}}) for i in range(300)]
    lines[40:40] = ["{not json", json.dumps({"id": "line-3", "text": "again"})]
    options = {"encoders": {**_HASHING, "image": None, "audio": None}, "fusion": {"method": "weighted"}}
    return _file("manifest.jsonl", "\n".join(lines).encode(), {**options, "shard_size": 48})


def _tar(random: np.random.Generator) -> dict[str, Any]:
    """A tar of media with a manifest; one member is missing, one is broken."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in _media_set(random, 60).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return _file("data.tar", target.getvalue(), {"encoders": _HASHING, "shard_size": 8})


def _zip(random: np.random.Generator) -> dict[str, Any]:
    """The same as a zip, which is repacked."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _media_set(random, 40).items():
            archive.writestr(name, data)
    weights = {"text": 1.0, "image": 2.0}
    options = {"encoders": {**_HASHING, "audio": None}, "fusion": {"method": "weighted", "weights": weights}}
    return _file("data.zip", target.getvalue(), {**options, "shard_size": 16})


def _parquet(random: np.random.Generator) -> dict[str, Any]:
    """A Parquet file of texts."""
    rows = {"id": [f"row-{i}" for i in range(200)], "text": [sentence(random) for _ in range(200)]}
    target = io.BytesIO()
    pq.write_table(pa.table(rows), target)
    options = {"encoders": {**_HASHING, "image": None, "audio": None}, "fusion": {"method": "none"}}
    return _file("data.parquet", target.getvalue(), {**options, "shard_size": 64})


def _word2vec(random: np.random.Generator) -> dict[str, Any]:
    """An encoder that is fitted on the job's own texts."""
    lines = [json.dumps({"id": f"line-{i}", "text": sentence(random)}) for i in range(120)]
    encoders = {"text": "small-word2vec", "image": None, "audio": None}
    return _file("corpus.jsonl", "\n".join(lines).encode(), {"encoders": encoders, "shard_size": 24})


def _all_bad(random: np.random.Generator) -> dict[str, Any]:
    """No item can be used: the job fails."""
    items = [{"id": f"item-{i}", "image": data_uri("image/png", random.bytes(40))} for i in range(12)]
    options = {"encoders": {**_HASHING, "text": None, "audio": None}, "shard_size": 4}
    return {"items": items, "options": options}


def _cancelled(random: np.random.Generator) -> dict[str, Any]:
    """Cancelled at some moment of its life."""
    return {**_jsonl(random), "tags": frozenset({"cancel"})}


def _media_set(random: np.random.Generator, count: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    lines = []
    for i in range(count):
        item: dict[str, Any] = {"id": f"item-{i}", "label": ["a", "b"][: i % 3]}
        if i % 4:
            item["text"] = sentence(random)
        if i % 3:
            item["image"] = f"pictures/{i}.png"
            members[item["image"]] = b"not a picture" if i == 4 else picture(random, 48)
        if not i % 3:
            item["audio"] = f"sounds/{i}.wav"
            members[item["audio"]] = sound(random, 1600)
        if i == 11:
            item["image"] = "pictures/missing.png"
        lines.append(json.dumps(item))
    return {"manifest.jsonl": "\n".join(lines).encode(), **members}


def _file(filename: str, content: bytes, options: dict[str, Any]) -> dict[str, Any]:
    return {"filename": filename, "content": content, "options": options}
