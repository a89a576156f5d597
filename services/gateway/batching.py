"""Accepting a batch: a job is made for the model that its input file names."""

import codecs

from pydantic_core import from_json

from services.gateway.admission import timeout_of
from services.gateway.deps import Services
from services.gateway.sources import find_encoder, find_speaker
from services.gateway.submission import submit
from shared import batches as shapes
from shared.batches import BatchOf, BatchRequest, ChatBatch, EmbeddingsBatch, EmbeddingsBatchOf, Endpoint
from shared.errors import blaming
from shared.jobs import batches
from shared.jobs.files import get_file
from shared.queues import Modality
from shared.schemas import Encoders, Fusion, FusionMethod, Input, JobType

#: As much of an input file is read at first.
_HEAD_BYTES = 64 * 1024

#: No model has a longer id.
_LONGEST_MODEL = 256


def create(
    services: Services, tenant: str, request: BatchRequest, idempotency_key: str | None
) -> shapes.Batch:  # fmt: skip
    """Creates the batch with its job, or finds the one that an earlier request with this key created.

    Raises NotFoundError (`file_not_found`, `model_not_found`), InvalidRequestError (`unsuitable_model`, …), and what
    `submit` raises.
    """
    with services.sessions() as session, blaming("input_file_id"):
        file, key = get_file(session, tenant, request.input_file_id)
    model = _named_model(services, key, file.bytes)
    as_job = _chat if request.endpoint is Endpoint.CHAT else _embeddings
    job, _ = submit(services, tenant, as_job(services, tenant, request, model), idempotency_key)
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


def _chat(services: Services, tenant: str, request: BatchRequest, model: str | None) -> ChatBatch:
    """The same of conversations, whose model says itself which encoders it takes."""
    if model is not None:
        with services.sessions() as session:
            find_speaker(session, tenant, model, language_models=services.language_models, catalog=services.catalog)
    return ChatBatch(
        type=JobType.PREDICT,
        model=model or next(iter(services.language_models)),
        input=Input(file_id=request.input_file_id),
        timeout_seconds=timeout_of(request.window_seconds, services.settings.limits),
        metadata=request.metadata or {},
        batch=BatchOf(endpoint=request.endpoint, completion_window=request.completion_window, model=model),
    )


def _named_model(services: Services, key: str, size: int) -> str | None:
    """The model of the first request in the object; None if that cannot be told, which planning says better."""
    head = b""
    for length in (_HEAD_BYTES, services.settings.limits.line_bytes):  # most lines are short
        head = services.store.get(key, length=min(length, size)).removeprefix(codecs.BOM_UTF8).lstrip()
        if b"\n" in head:
            break
    line, _, _ = head.partition(b"\n")
    try:
        first = from_json(line)
    except ValueError:
        return None
    body = first.get("body") if isinstance(first, dict) else None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) and len(model) <= _LONGEST_MODEL else None
