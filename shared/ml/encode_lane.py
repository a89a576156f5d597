"""Items whose vectors somebody waits for: what an extraction pool does with interactive requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.catalog import EncoderSpec
from shared.errors import InvalidRequestError, ItemError, JobError, NotFoundError
from shared.items import MediaLocation
from shared.jobs.encoders import fitted_encoder
from shared.lanes.messages import Encoded, EncodeItems, Fault, LaneRequest, Rows
from shared.ml.decoding import Decoder, decode_ahead, decode_limits
from shared.ml.encoders.base import Encoder, tokens_of
from shared.ml.encoders.batching import MAX_COST, encode_all
from shared.ml.models import ModelCache, load_on_worker
from shared.queues import Modality, Stage
from shared.storage.fetching import UrlFetcher
from shared.worker.context import Prepared, WorkerContext
from shared.worker.control import Control
from shared.worker.media import fetch_media

#: Decoded items of one request; the rest is too large to be waited for.
DECODED_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class _Inputs:
    """The items of one request: inputs for the encoder, and the errors of those that have none."""

    encoder: Encoder
    count: int
    inputs: dict[int, Any]
    errors: dict[int, ItemError]


class EncodeLane:
    """Lane handler of one modality's extraction stage (see shared.worker.context.LaneHandler).

    A request's model is an encoder's id in the catalogue, or the id of a model that a job fitted; that the latter is
    the tenant's was checked before.
    """

    def __init__(self, context: WorkerContext, modality: Modality, decoder: Decoder, models: ModelCache):
        self._context, self._modality, self._decoder, self._models = context, modality, decoder, models
        self._fetcher = UrlFetcher(context.settings.fetching, context.settings.limits.media_bytes)
        self.stage = Stage(modality.value)

    def models(self) -> list[str]:
        """The encoders in memory."""
        return self._models.keys()

    def load(self, request: LaneRequest, control: Control) -> None:
        """Brings the encoder into memory. Raises JobError."""
        self._encoder(request, control)

    def prepare(self, request: LaneRequest, control: Control) -> Prepared:
        """Fetches, decodes and preprocesses the items."""
        payload = request.payload
        assert isinstance(payload, EncodeItems)
        encoder = self._encoder(request, control)
        limits = decode_limits(self._context.settings.limits)
        options = {**encoder.decode_options, **payload.preprocessing, **limits}
        found = _Inputs(encoder, len(payload.items), {}, {})
        held = 0
        contents = self._bytes_of(payload.items)
        for index, prepared in decode_ahead(self._decoder, contents, encoder, options, urgent=True):
            control.check()
            if isinstance(prepared, ItemError):
                found.errors[index] = prepared
            elif held + prepared[1] > DECODED_BYTES:
                message = f"The items decode to more than {DECODED_BYTES} bytes together; send them as a job."
                found.errors[index] = ItemError(message, code="media_too_large")
            else:
                found.inputs[index], size = prepared
                held += size
        costs = sum(encoder.cost(one) for one in found.inputs.values())
        return Prepared(found, costs / MAX_COST[self._modality], held)

    def run(self, batch: Sequence[_Inputs]) -> list[Encoded]:
        """Encodes the items of all the requests together."""
        encoder = batch[0].encoder
        vectors, errors = encode_all(encoder, [one for request in batch for one in request.inputs.values()])
        answers = []
        first = 0
        for request in batch:
            rows = np.zeros((request.count, encoder.dimension), np.float32)
            rows[list(request.inputs)] = vectors[first : first + len(request.inputs)]
            failed = {index: errors[first + i] for i, index in enumerate(request.inputs) if first + i in errors}
            faults = {
                index: Fault(code=error.error_code, message=error.message)
                for index, error in (request.errors | failed).items()
            }
            tokens = sum(tokens_of(encoder, one) for one in request.inputs.values())
            answers.append(Encoded(vectors=Rows.of(rows), faults=faults, tokens=tokens))
            first += len(request.inputs)
        return answers

    def _encoder(self, request: LaneRequest, control: Control) -> Encoder:
        def load() -> Encoder:
            return load_on_worker(self._context, control.patiently(lambda: self._find(request)), control)

        return self._models.get(request.model, load)

    def _find(self, request: LaneRequest) -> EncoderSpec:
        """The catalogue's entry; or what a job of the tenant made. Raises JobError."""
        spec = self._context.catalog.get(request.model)
        try:
            if spec is None:
                with self._context.sessions() as session:
                    spec = fitted_encoder(session, request.tenant, self._modality, request.model)
        except (InvalidRequestError, NotFoundError) as error:
            raise JobError(error.message, code=error.error_code) from error
        if spec.modality is not self._modality:
            raise JobError(f"{request.model!r} is no {self._modality} encoder.", code="unknown_encoder")
        return spec

    def _bytes_of(self, items: Sequence[str | MediaLocation]) -> dict[int, bytes | ItemError]:
        found: dict[int, bytes | ItemError] = {
            i: item.encode() for i, item in enumerate(items) if isinstance(item, str)
        }
        places = {i: item for i, item in enumerate(items) if isinstance(item, MediaLocation)}
        if places:
            limit = self._context.settings.limits.media_bytes
            found |= fetch_media(self._context.store, self._fetcher, places, limit)
        return found
