"""Extraction: the items of a slice to the vectors of one modality.

The same for text, image and audio; the pools differ in how they decode.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shared.errors import ItemError, JobError, NotFoundError, TriviumError
from shared.jobs import cache, engine
from shared.jobs.records import CachedVectors, Finished, ItemFailure, Lease
from shared.ml.encoders.base import Encoder, Vectors
from shared.ml.encoders.batching import encode_all
from shared.ml.models import ModelCache
from shared.queues import Modality
from shared.schemas import MediaLocation, PlannedItem
from shared.storage import keys
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.media import fetch_media
from shared.worker.slices import Arrays, CorruptObjectError, pack, read_slice, read_verified, unpack


class Decoder(Protocol):
    """Turns the bytes of one item into what the encoder's `preprocess` takes."""

    def submit(self, data: bytes, options: dict[str, Any]) -> "Future[Any]":
        """A future of the decoded item, or of its ItemError."""
        ...


@dataclass
class Batch:
    """The items of a shard on their way: each content once, with the items that share it."""

    encoder: Encoder
    fingerprint: str
    items: list[PlannedItem]
    holders: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    vectors: dict[str, Vectors] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    prepared: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, ItemError] = field(default_factory=dict)


class Extraction:
    """Handler of one modality's extraction stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext, modality: Modality, decoder: Decoder, models: ModelCache):
        self._context, self._modality, self._decoder, self._models = context, modality, decoder, models

    def prepare(self, lease: Lease, control: Control) -> Batch:
        """Reads the slice, asks the cache, then fetches, decodes and preprocesses what is not in it."""
        encoder = self._encoder(lease, control)
        options = lease.request["preprocessing"].get(self._modality.value, {})
        batch = Batch(
            encoder,
            _feature_fingerprint(encoder, options),
            [
                item
                for item in control.patiently(lambda: read_slice(self._context.store, lease.spec))
                if self._has(item)
            ],
        )
        data = self._contents(batch, control)
        self._ask_cache(lease, batch, control)
        if lease.isolated:
            batch.prepared = {content: data.get(content) for content in batch.holders}
        else:
            self._decode(batch, [c for c in batch.holders if c not in batch.vectors], data, options, control)
        return batch

    def run(self, lease: Lease, prepared: Batch, control: Control) -> Batch:
        """Encodes what was prepared, in batches; an isolated shard item by item."""
        if lease.isolated:
            self._run_isolated(lease, prepared, control)
        else:
            self._encode(prepared, control)
        return prepared

    def store(self, lease: Lease, output: Batch, control: Control) -> Finished:
        """Writes the shard's vectors, and the new ones again as a segment of the cache."""
        rows = {i: output.vectors[c] for c, holders in output.holders.items() if c in output.vectors for i in holders}
        index = sorted(rows)
        dimension = output.encoder.dimension
        arrays: Arrays = {
            "index": np.array(index, np.int64),
            "vectors": np.stack([rows[i] for i in index]) if index else np.zeros((0, dimension), np.float32),
        }
        data = pack(arrays, {"encoder": output.encoder.spec.id, "fingerprint": output.fingerprint})
        key = keys.shard_result(lease.job_id, lease.stage, lease.index, lease.token)
        stored = control.patiently(lambda: self._context.store.put(key, data))
        names = {item.index: item.id for item in output.items}
        failures = [
            ItemFailure(i, names[i], self._modality, error.error_code, error.message)
            for content, error in output.errors.items()
            for i in output.holders[content]
        ]
        return Finished(
            lease,
            stored,
            items_done=len(output.items),
            items_cached=sum(len(output.holders[content]) for content in output.cached),
            failures=failures,
            rows=len(index),
            cached=self._segment(lease, output, control),
        )

    def _slice(self, lease: Lease, control: Control) -> list[PlannedItem]:
        return control.patiently(lambda: read_slice(self._context.store, lease.spec))

    def _has(self, item: PlannedItem) -> bool:
        return getattr(item, self._modality.value) is not None

    def _encoder(self, lease: Lease, control: Control) -> Encoder:
        from shared.ml.encoders.loading import load_encoder

        chosen = lease.schema["encoders"][self._modality.value]
        spec = self._context.catalog.resolve(self._modality, chosen["id"])
        worker = self._context.settings.worker
        fitted = lease.schema.get("fitted_models", {}).get(self._modality.value)

        def load() -> Encoder:
            if fitted is None:
                return load_encoder(spec, device=worker.device, precision=worker.precision)
            with tempfile.TemporaryDirectory() as folder:
                download_model(self._context, fitted, Path(folder), control)
                return load_encoder(spec, device=worker.device, precision=worker.precision, model_path=Path(folder))

        try:
            return self._models.get(fitted["id"] if fitted else spec.id, load)
        except TriviumError:
            raise
        except Exception as error:
            message = f"The encoder {spec.id!r} cannot be loaded: {error}"
            raise JobError(message, code="encoder_unavailable") from error

    def _contents(self, batch: Batch, control: Control) -> dict[str, bytes]:
        """Fills `holders`; returns the bytes known so far: all texts, and media whose hash planning did not know."""
        known: dict[str, bytes] = {}
        unknown: dict[int, MediaLocation] = {}
        for item in batch.items:
            value = getattr(item, self._modality.value)
            if isinstance(value, str):
                data = value.encode()
                content = hashlib.sha256(data).hexdigest()
                known[content] = data
                batch.holders[content].append(item.index)
            elif value.sha256:
                batch.holders[value.sha256].append(item.index)
            else:
                unknown[item.index] = value
        for i, found in self._fetch(unknown, control).items():
            content = f"item-{i}" if isinstance(found, ItemError) else hashlib.sha256(found).hexdigest()
            batch.holders[content].append(i)
            if isinstance(found, ItemError):
                batch.errors[content] = found
            else:
                known[content] = found
        return known

    def _fetch(self, locations: dict[int, MediaLocation], control: Control) -> dict[int, bytes | ItemError]:
        limit = self._context.settings.limits.media_bytes
        return control.patiently(lambda: fetch_media(self._context.store, locations, limit)) if locations else {}

    def _ask_cache(self, lease: Lease, batch: Batch, control: Control) -> None:
        if not self._context.settings.engine.cache_bytes:
            return

        def look_up() -> dict[tuple[str, str], dict[str, int]]:
            with self._context.sessions.begin() as session:
                return cache.look_up(session, lease.tenant, batch.fingerprint, list(batch.holders))

        for (key, sha256), rows in control.patiently(look_up).items():
            try:
                data = control.patiently(partial(read_verified, self._context.store, key, sha256))
            except (NotFoundError, CorruptObjectError):
                continue  # evicted since, or broken: compute it again
            vectors = unpack(data)["vectors"]
            for content, row in rows.items():
                batch.vectors[content] = vectors[row]
                batch.cached.add(content)

    def _decode(
        self, batch: Batch, contents: list[str], data: dict[str, bytes], options: dict[str, Any], control: Control
    ) -> None:
        """Fetches, decodes and preprocesses contents; what fails goes to `errors`."""
        wanted = [content for content in contents if content not in batch.errors]
        by_index = {item.index: item for item in batch.items}
        first = {content: batch.holders[content][0] for content in wanted if content not in data}
        fetched = self._fetch({i: getattr(by_index[i], self._modality.value) for i in first.values()}, control)
        decode_options = {**batch.encoder.decode_options, **options, **self._limits()}
        futures = {}
        for content in wanted:
            found = data.get(content) if content in data else fetched[first[content]]
            if isinstance(found, bytes):
                futures[content] = self._decoder.submit(found, decode_options)
            elif found is not None:
                batch.errors[content] = found
        for content, future in futures.items():
            control.check()
            try:
                batch.prepared[content] = batch.encoder.preprocess(future.result())
            except ItemError as error:
                batch.errors[content] = error

    def _limits(self) -> dict[str, Any]:
        limits = self._context.settings.limits
        return {
            "max_pixels": limits.image_pixels,
            "max_seconds": limits.audio_seconds,
            "max_bytes": limits.text_bytes,
        }

    def _encode(self, batch: Batch, control: Control) -> None:
        contents = list(batch.prepared)
        vectors, errors = encode_all(
            batch.encoder, [batch.prepared[c] for c in contents], on_batch=lambda _: control.check()
        )
        for position, content in enumerate(contents):
            if position in errors:
                batch.errors[content] = errors[position]
            else:
                batch.vectors[content] = vectors[position]
        batch.prepared.clear()

    def _run_isolated(self, lease: Lease, batch: Batch, control: Control) -> None:
        """One content at a time, with a note of which: those that a worker died on before come first."""
        options = lease.request["preprocessing"].get(self._modality.value, {})
        data = {content: value for content, value in batch.prepared.items() if value is not None}
        batch.prepared = {}
        waiting = [content for content in batch.holders if content not in batch.vectors]
        waiting.sort(key=lambda content: not lease.suspects & set(batch.holders[content]))
        for content in waiting:
            control.check()
            if lease.condemned & set(batch.holders[content]):
                message = "A worker died each time this item was tried."
                batch.errors[content] = ItemError(message, code="item_crashed_worker")
                continue
            first = batch.holders[content][0]
            control.patiently(partial(self._probe, lease, first))
            self._decode(batch, [content], data, options, control)
            self._encode(batch, control)

    def _probe(self, lease: Lease, item_index: int) -> None:
        with self._context.sessions.begin() as session:
            engine.probe(session, lease, item_index)

    def _segment(self, lease: Lease, batch: Batch, control: Control) -> CachedVectors | None:
        new = [c for c in batch.vectors if c not in batch.cached]
        if not new or not self._context.settings.engine.cache_bytes:
            return None
        key = keys.cache_segment(lease.tenant, batch.fingerprint, lease.token)
        data = pack({"vectors": np.stack([batch.vectors[c] for c in new])}, {"fingerprint": batch.fingerprint})
        stored = control.patiently(lambda: self._context.store.put(key, data))
        return CachedVectors(stored, batch.fingerprint, new)


def _feature_fingerprint(encoder: Encoder, options: dict[str, Any]) -> str:
    """What the vectors depend on besides the content."""
    return hashlib.sha256(f"{encoder.fingerprint}{json.dumps(options, sort_keys=True)}".encode()).hexdigest()


def download_model(context: WorkerContext, model: dict[str, Any], folder: Path, control: Control) -> None:
    """Writes the files of a registry model (`{"files": {name: {"key", "sha256"}}}`) into `folder`, checked."""
    for name, file in model["files"].items():
        data = control.patiently(partial(read_verified, context.store, file["key"], file["sha256"]))
        (folder / Path(name).name).write_bytes(data)
