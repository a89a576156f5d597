"""Accepting a job: checked, planned right here if it is small, and stored in one transaction."""

from collections.abc import Collection, Mapping
from hashlib import sha256

from pydantic_core import PydanticSerializationError

from services.gateway import admission
from services.gateway.deps import Services
from services.gateway.sources import check_language_model, settle
from shared import schemas
from shared.catalog import Catalog, FittedEncoder
from shared.errors import ConflictError, InvalidRequestError
from shared.fine_tuning_jobs import OpenAITuning
from shared.ids import new_id
from shared.items import Item, MediaLocation
from shared.jobs import repository
from shared.jobs.backlog import check_backlog, check_with_others
from shared.jobs.encoders import MODEL, with_models
from shared.jobs.files import locate_files, total_bytes
from shared.jobs.layout import lay_out, lay_out_on_features
from shared.jobs.records import Plan
from shared.jobs.repository import NewJob
from shared.planning import plan_inline
from shared.requests import JobRequest
from shared.schemas import FeaturesRequest, ItemSource
from shared.storage import keys


def submit(
    services: Services, tenant: str, request: JobRequest, idempotency_key: str | None
) -> tuple[schemas.Job, bool]:
    """Creates the job, or finds the one that an earlier request with this key created (then the flag is False).

    Raises what `admission.check` raises, BusyError, NotFoundError (`file_not_found`), and InvalidRequestError
    (`idempotency_key_reused`, `invalid_unicode`).
    """
    body = _canonical(request)
    digest = sha256(body).hexdigest()
    with services.sessions() as session:
        if idempotency_key is not None:
            earlier = repository.find_repeat(session, tenant, idempotency_key, digest)
            if earlier is not None:
                return repository.snapshot(session, earlier), False
        if (language_model := getattr(request, "language_model", None)) is not None:
            check_language_model(session, tenant, services.language_models, language_model)
        request = settle(session, tenant, request, services.language_models, services.catalog)
        catalog = with_models(session, tenant, services.catalog, request.encoders)
        files = _files_of(request)
        input_bytes = (len(body) if request.items else 0) + total_bytes(session, tenant, files)
        check_backlog(session, tenant, services.settings.limits, input_bytes)
    admission.check(request, tenant, services.settings, catalog)
    new = NewJob(
        id=new_id("job"),
        tenant=tenant,
        request=request.model_dump(mode="json", exclude={"items"}),
        request_sha256=digest,
        idempotency_key=idempotency_key,
        file_ids=files,
        features=getattr(request, "features", None),
        model=_model_of(request),
        encoders=[id for id in request.encoders.chosen().values() if isinstance(catalog.get(id), FittedEncoder)],
        input_bytes=input_bytes,
        timeout_seconds=admission.timeout_of(request.timeout_seconds, services.settings.limits),
    )
    plan = _prepare(services, new, request, catalog, len(body))
    return _insert(services, new, plan)


def _prepare(services: Services, new: NewJob, request: ItemSource, catalog: Catalog, body_bytes: int) -> Plan | None:
    """Objects first: the plan of a small inline job, or the items of a large one, for the dispatcher to plan."""
    if request.items is None:
        return None
    if body_bytes > services.settings.engine.inline_plan_bytes:
        lines = b"".join(item.model_dump_json(exclude_defaults=True).encode() + b"\n" for item in request.items)
        services.store.put(keys.inline_items(new.id), lines, "application/x-ndjson")
        return None

    def resolve(ids: Collection[str]) -> Mapping[str, MediaLocation]:
        with services.sessions() as session:
            return locate_files(session, new.tenant, ids)

    return plan_inline(
        services.store,
        new.id,
        request,
        catalog=catalog,
        limits=services.settings.limits,
        fetching=services.settings.fetching,
        resolve_files=resolve,
    )


def _insert(services: Services, new: NewJob, plan: Plan | None) -> tuple[schemas.Job, bool]:
    """Rows last, in one transaction. If it does not come about, the sweep removes the objects."""
    with services.sessions.begin() as session:
        job = repository.create(session, new)
        if job is not None:
            check_with_others(session, job.tenant, services.settings.limits)
            if plan is not None:
                lay_out(session, job, plan)
            elif new.features is not None:
                lay_out_on_features(session, job, repository.find_features(session, new.tenant, new.features))
            else:
                repository.queue_plan(session, job)
            shown, queues = repository.snapshot(session, job), repository.ready_queues(session, job.id)
        else:
            assert new.idempotency_key is not None
            first = repository.find_repeat(session, new.tenant, new.idempotency_key, new.request_sha256)
            if first is None:
                raise ConflictError("The job of this Idempotency-Key is being deleted; send the request again.")
            shown, queues = repository.snapshot(session, first), []
    services.hint(queues)
    return shown, job is not None


def _canonical(request: JobRequest) -> bytes:
    try:
        return request.model_dump_json(exclude_defaults=True).encode()
    except PydanticSerializationError as error:
        message = "The items hold text that is not valid Unicode (half of a surrogate pair)."
        raise InvalidRequestError(message, code="invalid_unicode", param="items") from error


def _model_of(request: JobRequest) -> str | None:
    """The model of the tenant's that the job needs."""
    if isinstance(request, FeaturesRequest):
        return request.fusion.model
    named: str | None = getattr(request, "model", getattr(request, "language_model", None))
    return named if named is not None and named.startswith(MODEL) else None


def _files_of(request: ItemSource) -> frozenset[str]:
    """The files that the request names: its manifest, or the media of its inline items."""
    if request.input is not None:
        validation = request.openai.validation_file if isinstance(request, OpenAITuning) else None
        return frozenset(filter(None, [request.input.file_id, validation]))
    return frozenset(ref for item in request.items or () for ref in _refs(item) if ref.startswith("file-"))


def _refs(item: Item) -> list[str]:
    return [ref for ref in (item.image, item.audio) if ref is not None]
