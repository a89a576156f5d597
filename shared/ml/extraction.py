"""Extraction: the items of a slice to the vectors of one modality.

The same for text, image and audio; the pools differ in how they decode.
"""

import hashlib
import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.catalog import FittedEncoder
from shared.errors import ItemError, NotFoundError
from shared.items import MediaLocation, PlannedItem
from shared.jobs import cache, engine
from shared.jobs.encoders import encoder_of
from shared.jobs.records import CachedVectors, Finished, ItemFailure, Lease
from shared.ml.decoding import Decoder, decode_ahead, decode_limits
from shared.ml.encoders.base import Encoder, Vectors, tokens_of
from shared.ml.encoders.batching import encode_all
from shared.ml.models import ModelCache, load_on_worker
from shared.queues import Modality
from shared.storage import keys
from shared.storage.fetching import UrlFetcher
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.media import fetch_media
from shared.worker.slices import Arrays, CorruptObjectError, pack, read_slice, read_verified, unpack

#: Encoded media fetched at once, and what is assumed of media whose size is not known.
FETCH_BYTES, UNKNOWN_BYTES = 64 * 1024**2, 8 * 1024**2

#: Decoded media of one shard that may wait for the model.
PREPARED_BYTES = 512 * 1024**2


@dataclass
class Batch:
    """The items of a shard on their way: each content once, with the items that share it."""

    encoder: Encoder
    fingerprint: str
    decode_options: dict[str, Any]
    items: dict[int, PlannedItem]
    holders: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    waiting: deque[str] = field(default_factory=deque)
    prepared: dict[str, Any] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    errors: dict[str, ItemError] = field(default_factory=dict)
    ask_cache: bool = True

    def first_item(self, content: str) -> PlannedItem:
        """The first of the items that share a content."""
        return self.items[self.holders[content][0]]


class Extraction:
    """Handler of one modality's extraction stage (see shared.worker.context.Handler)."""

    def __init__(self, context: WorkerContext, modality: Modality, decoder: Decoder, models: ModelCache):
        self._context, self._modality, self._decoder, self._models = context, modality, decoder, models
        self._fetcher = UrlFetcher(context.settings.fetching, context.settings.limits.media_bytes)

    def load(self, lease: Lease, control: Control) -> None:
        """Brings the encoder into memory."""
        self._encoder(lease, control)

    def prepare(self, lease: Lease, control: Control) -> Batch:
        """Reads the slice, asks the cache, then fetches, decodes and preprocesses what is not in it."""
        encoder = self._encoder(lease, control)
        items = control.patiently(lambda: read_slice(self._context.store, lease.spec))
        batch = self._new_batch(lease, encoder, items)
        self._ask_cache(lease, batch, batch.holders, control)
        batch.waiting.extend(content for content in batch.holders if content not in batch.vectors)
        if not lease.isolated:
            self._decode_some(lease, batch, control)
        return batch

    def run(self, lease: Lease, prepared: Batch, control: Control) -> Batch:
        """Encodes what was prepared, in batches, then what did not fit into memory; if isolated, item by item."""
        if lease.isolated:
            self._run_isolated(lease, prepared, control)
            return prepared
        self._encode(prepared, control)
        while prepared.waiting:
            self._decode_some(lease, prepared, control)
            self._encode(prepared, control)
        return prepared

    def store(self, lease: Lease, output: Batch, control: Control) -> Finished:
        """Writes the shard's vectors, and the new ones again as a segment of the cache."""
        content_of = {i: c for c, holders in output.holders.items() if c in output.vectors for i in holders}
        index = sorted(content_of)
        contents = [content_of[i] for i in index]
        dimension = output.encoder.dimension
        arrays: Arrays = {
            "index": np.array(index, np.int64),
            "vectors": np.stack([output.vectors[c] for c in contents])
            if index
            else np.zeros((0, dimension), np.float32),
            "tokens": _tokens(output, contents),
        }
        data = pack(arrays, {"encoder": output.encoder.spec.id, "fingerprint": output.fingerprint})
        key = keys.shard_result(lease.job_id, lease.stage, lease.index, lease.token)
        stored = control.patiently(lambda: self._context.store.put(key, data))
        failures = [
            ItemFailure(i, output.items[i].id, self._modality, error.error_code, error.message)
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

    def read(
        self, lease: Lease, encoder: Encoder, items: Iterable[PlannedItem], control: Control
    ) -> Iterator[tuple[PlannedItem, Any]]:
        """These items as `encoder` takes them; those that cannot be read are left out. Not in their order."""
        batch = self._new_batch(lease, encoder, items)
        batch.ask_cache = False  # what is in there are vectors
        batch.waiting.extend(batch.holders)
        while batch.waiting:
            self._decode(lease, batch, _next_chunk(batch, self._modality), control)
            for content, prepared in batch.prepared.items():
                yield from ((batch.items[index], prepared) for index in batch.holders[content])
            batch.prepared.clear()

    def _new_batch(self, lease: Lease, encoder: Encoder, items: Iterable[PlannedItem]) -> Batch:
        options = lease.request["preprocessing"].get(self._modality.value, {})
        batch = Batch(
            encoder=encoder,
            fingerprint=_feature_fingerprint(encoder, options),
            decode_options={**encoder.decode_options, **options, **decode_limits(self._context.settings.limits)},
            items={item.index: item for item in items if getattr(item, self._modality.value) is not None},
        )
        for item in batch.items.values():
            batch.holders[_content_of(item, self._modality)].append(item.index)
        return batch

    def _encoder(self, lease: Lease, control: Control) -> Encoder:
        spec = encoder_of(lease.schema, self._modality, self._context.catalog)
        key = spec.model if isinstance(spec, FittedEncoder) else spec.id
        return self._models.get(key, lambda: load_on_worker(self._context, spec, control))

    def _ask_cache(self, lease: Lease, batch: Batch, contents: Iterable[str], control: Control) -> None:
        known = [content for content in contents if _is_hash(content)]
        if not known or not batch.ask_cache or not self._context.settings.engine.cache_bytes:
            return

        def look_up() -> dict[tuple[str, str], dict[str, int]]:
            with self._context.sessions.begin() as session:
                return cache.look_up(session, lease.tenant, batch.fingerprint, known)

        for (key, sha256), rows in control.patiently(look_up).items():
            try:
                data = control.patiently(partial(read_verified, self._context.store, key, sha256))
            except (NotFoundError, CorruptObjectError):
                continue  # evicted since, or broken: compute it again
            arrays = unpack(data)
            tokens = arrays.get("tokens")  # releases before this one did not keep them
            for content, row in rows.items():
                batch.vectors[content] = arrays["vectors"][row]
                batch.tokens[content] = 0 if tokens is None else int(tokens[row])
                batch.cached.add(content)

    def _decode_some(self, lease: Lease, batch: Batch, control: Control) -> None:
        """Decodes what waits, until nothing does or what is prepared fills its share of memory."""
        held = 0
        while batch.waiting and held < PREPARED_BYTES:
            held += self._decode(lease, batch, _next_chunk(batch, self._modality), control)

    def _decode(self, lease: Lease, batch: Batch, contents: list[str], control: Control) -> int:
        """Fetches, decodes and preprocesses contents; what fails goes to `errors`. Returns the bytes now prepared."""
        held = 0
        found = self._new_bytes(lease, batch, contents, control)
        for content, prepared in decode_ahead(self._decoder, found, batch.encoder, batch.decode_options):
            control.check()
            if isinstance(prepared, ItemError):
                batch.errors[content] = prepared
            else:
                batch.prepared[content], size = prepared
                held += size
        return held

    def _new_bytes(
        self, lease: Lease, batch: Batch, contents: list[str], control: Control
    ) -> dict[str, bytes | ItemError]:
        """The raw bytes of contents. Those whose hash planning could not know get it for their name now; what it shows
        to be known already is left out."""
        found: dict[str, bytes | ItemError] = {}
        for content, data in self._bytes_of(batch, contents, control).items():
            name = content
            if isinstance(data, bytes) and not _is_hash(content):
                name = hashlib.sha256(data).hexdigest()
                batch.holders[name] += batch.holders.pop(content)
            found[name] = data
        self._ask_cache(lease, batch, found.keys() - set(contents) - batch.vectors.keys(), control)
        over = {*batch.vectors, *batch.prepared, *batch.errors}
        return {name: data for name, data in found.items() if name not in over}

    def _bytes_of(self, batch: Batch, contents: list[str], control: Control) -> dict[str, bytes | ItemError]:
        """The raw bytes of contents: texts from the slice, media from storage."""
        values = {content: getattr(batch.first_item(content), self._modality.value) for content in contents}
        found: dict[str, bytes | ItemError] = {c: v.encode() for c, v in values.items() if isinstance(v, str)}
        places = {i: value for i, value in enumerate(values.values()) if isinstance(value, MediaLocation)}
        if places:
            limit = self._context.settings.limits.media_bytes
            fetched = control.patiently(lambda: fetch_media(self._context.store, self._fetcher, places, limit))
            found.update({content: fetched[i] for i, content in enumerate(values) if i in places})
        return found

    def _encode(self, batch: Batch, control: Control) -> None:
        contents = list(batch.prepared)
        inputs = [batch.prepared[c] for c in contents]
        vectors, errors = encode_all(batch.encoder, inputs, before_batch=control.breathe)
        for position, content in enumerate(contents):
            if position in errors:
                batch.errors[content] = errors[position]
            else:
                batch.vectors[content] = vectors[position]
                batch.tokens[content] = tokens_of(batch.encoder, inputs[position])
        batch.prepared.clear()

    def _run_isolated(self, lease: Lease, batch: Batch, control: Control) -> None:
        """One content at a time, with a note of which: those that a worker died on before come first."""
        waiting = sorted(batch.waiting, key=lambda content: not lease.suspects & set(batch.holders[content]))
        batch.waiting.clear()
        for content in waiting:
            control.check()
            if lease.condemned & set(batch.holders[content]):
                message = "A worker died each time this item was tried."
                batch.errors[content] = ItemError(message, code="item_crashed_worker")
                continue
            control.patiently(partial(self._probe, lease, batch.holders[content][0]))
            self._decode(lease, batch, [content], control)
            self._encode(batch, control)
        control.patiently(partial(self._probe, lease, None))  # a death from here on is no item's doing

    def _probe(self, lease: Lease, item_index: int | None) -> None:
        with self._context.sessions.begin() as session:
            engine.probe(session, lease, item_index)

    def _segment(self, lease: Lease, batch: Batch, control: Control) -> CachedVectors | None:
        new = [c for c in batch.vectors if c not in batch.cached and _is_hash(c)]
        if not new or not self._context.settings.engine.cache_bytes:
            return None
        key = keys.cache_segment(lease.tenant, batch.fingerprint, lease.token)
        arrays = {"vectors": np.stack([batch.vectors[c] for c in new]), "tokens": _tokens(batch, new)}
        data = pack(arrays, {"fingerprint": batch.fingerprint})
        stored = control.patiently(lambda: self._context.store.put(key, data))
        return CachedVectors(stored, batch.fingerprint, new)


def _tokens(batch: Batch, contents: Sequence[str]) -> NDArray[np.int32]:
    return np.array([batch.tokens.get(content, 0) for content in contents], np.int32)


def _content_of(item: PlannedItem, modality: Modality) -> str:
    """The sha256 of an item's content; where planning could not know it, its URL, or (in an S3 prefix) its key."""
    value = getattr(item, modality.value)
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    return value.sha256 or value.url or f"s3://{value.bucket or ''}/{value.key}"


def _is_hash(content: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", content) is not None


def _next_chunk(batch: Batch, modality: Modality) -> list[str]:
    """Takes the next contents off `waiting`: as many as may be fetched at once."""
    chunk: list[str] = []
    size = 0
    while batch.waiting and size < FETCH_BYTES:
        content = batch.waiting.popleft()
        value = getattr(batch.first_item(content), modality.value)
        size += len(value) if isinstance(value, str) else value.size or UNKNOWN_BYTES
        chunk.append(content)
    return chunk


def _feature_fingerprint(encoder: Encoder, options: dict[str, Any]) -> str:
    """What the vectors depend on besides the content."""
    return hashlib.sha256(f"{encoder.fingerprint}{json.dumps(options, sort_keys=True)}".encode()).hexdigest()
