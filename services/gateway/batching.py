"""Accepting a batch: a job is made for the model that its input file names."""

import codecs

from pydantic_core import from_json

from services.gateway.admission import timeout_of
from services.gateway.deps import Services
from services.gateway.sources import find_encoder
from services.gateway.submission import submit
from shared import batches as shapes
from shared.batches import BatchRequest, EmbeddingsBatch, EmbeddingsBatchOf, Endpoint
from shared.errors import InvalidRequestError, blaming
from shared.jobs import batches
from shared.jobs.files import get_file
from shared.queues import Modality
from shared.schemas import Encoders, Fusion, FusionMethod, Input

#: The first line of an input file is read in pieces of this size.
_PIECE_BYTES = 64 * 1024


def create(
    services: Services, tenant: str, request: BatchRequest, idempotency_key: str | None
) -> shapes.Batch:  # fmt: skip
    """Creates the batch with its job, or finds the one that an earlier request with this key created.

    Raises NotFoundError (`file_not_found`, `model_not_found`), InvalidRequestError (`unsupported_endpoint`,
    `unsuitable_model`, …), and what `submit` raises.
    """
    if request.endpoint is not Endpoint.EMBEDDINGS:
        message = f"Batches are taken over {Endpoint.EMBEDDINGS} here."
        raise InvalidRequestError(message, code="unsupported_endpoint", param="endpoint")
    with services.sessions() as session, blaming("input_file_id"):
        file, key = get_file(session, tenant, request.input_file_id)
    model = _named_model(services, key, file.bytes)
    job, _ = submit(services, tenant, _embeddings(services, tenant, request, model), idempotency_key)
    with services.sessions() as session:
        return batches.snapshot(session, batches.find_of_job(session, tenant, job.id))


def _embeddings(services: Services, tenant: str, request: BatchRequest, model: str | None) -> EmbeddingsBatch:
    """The job of a batch. Without a model in the first line it exists to say what is wrong with the file."""
    with services.sessions() as session:
        spec = (
            services.catalog.resolve(Modality.TEXT)
            if model is None
            else find_encoder(session, tenant, services.catalog, model)
        )
    chosen = dict.fromkeys(Encoders.model_fields, None) | {spec.modality.value: spec.id}
    return EmbeddingsBatch(
        input=Input(file_id=request.input_file_id),
        encoders=Encoders(**chosen),
        fusion=Fusion(method=FusionMethod.NONE),
        timeout_seconds=timeout_of(request.window_seconds, services.settings.limits),
        metadata=request.metadata or {},
        batch=EmbeddingsBatchOf(
            endpoint=request.endpoint,
            completion_window=request.completion_window,
            model=model,
            dimension=spec.dimension,
            may_be_cut=bool(spec.options.get("matryoshka")),
        ),
    )


def _named_model(services: Services, key: str, size: int) -> str | None:
    """The model of the first request in the object; None if that cannot be told, which planning says better."""
    head, longest = bytearray(), min(size, services.settings.limits.line_bytes)
    while b"\n" not in head.lstrip() and len(head) < longest:
        head += services.store.get(key, offset=len(head), length=_PIECE_BYTES)
    line, _, _ = bytes(head.removeprefix(codecs.BOM_UTF8).lstrip()).partition(b"\n")
    try:
        first = from_json(line)
    except ValueError:
        return None
    body = first.get("body") if isinstance(first, dict) else None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None
