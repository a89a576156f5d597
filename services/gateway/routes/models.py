"""Models: the catalogue's encoders, and what the tenant's jobs fitted or trained: shown, downloaded, deleted."""

from pathlib import PurePosixPath
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.convertors import StringConvertor, register_url_convertor

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers, errors
from services.gateway.paging import page_behind
from services.gateway.streaming import begun
from shared.catalog import EncoderSpec
from shared.errors import NotFoundError
from shared.jobs.registry import delete_model, find_model, fitted_models
from shared.language_models import LanguageModelSpec
from shared.schemas import Deleted, ModelEntry, Page
from shared.storage import keys

router = APIRouter(tags=["models"], responses=COMMON_ERRORS)


class _AnyConvertor(StringConvertor):
    """Slashes, which ids of hubs have, and line ends, too, which `path` leaves to no route: 404, and not 405."""

    regex = r"(?s:.+)"


register_url_convertor("any", _AnyConvertor())


@router.get("/v1/models", summary="List models", responses=answers(examples.page_of(examples.MODEL)))
def list_models(services: ServicesDep, caller: CallerDep, limit: Limit = 1000, after: After = None) -> Page[ModelEntry]:
    """The encoders and language models that can be named in a job, then what the tenant's jobs made, newest first."""
    with services.sessions() as session:
        fitted = fitted_models(session, caller.tenant)
    built_in = [_entry(spec) for spec in services.catalog.values()]
    built_in += [_language_model(spec) for spec in services.language_models.values()]
    return page_behind([*built_in, *fitted], limit, after, lambda model: model.id)


@router.get(
    "/v1/models/{id}/files/{name:path}",
    summary="Read a file of a model",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The bytes",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **errors(404),
    },
)
def read_model_file(id: str, name: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """One of the `files` of a model that a job made: weights (safetensors), configuration, metrics, the model card."""
    with services.sessions() as session:
        file = find_model(session, caller.tenant, id).spec["files"].get(name)
    if file is None:
        raise NotFoundError(f"The model {id!r} has no file {name!r}.", code="file_not_found")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(PurePosixPath(name).name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{file["sha256"]}"',
    }
    content = services.store.stream(file["key"])
    return StreamingResponse(begun(content), media_type="application/octet-stream", headers=headers)


@router.delete(
    "/v1/models/{id}", summary="Delete a model", responses=answers(examples.deleted("model", "model-…"), 404, 409)
)
def remove_model(id: str, services: ServicesDep, caller: CallerDep) -> Deleted:
    """Deletes a model that a job made. 409 while a job that has not ended needs it."""
    with services.sessions.begin() as session:
        delete_model(session, caller.tenant, id)
    # Should this break off, the sweep finds the objects.
    services.store.delete(found.key for found in services.store.list(keys.model_prefix(id)))
    return Deleted(id=id, object="model")


@router.get("/v1/models/{id:any}", summary="Show a model", responses=answers(examples.MODEL, 404))
def get_model(id: str, services: ServicesDep, caller: CallerDep) -> ModelEntry:
    """One model."""
    spec = services.catalog.get(id)
    if spec is not None:
        return _entry(spec)
    if id in services.language_models:
        return _language_model(services.language_models[id])
    with services.sessions() as session:
        found = fitted_models(session, caller.tenant, id)
    if not found:
        raise NotFoundError(f"There is no model {id!r}.", code="model_not_found")
    return found[0]


def _entry(spec: EncoderSpec) -> ModelEntry:
    return ModelEntry(
        id=spec.id,
        modality=spec.modality,
        dimension=spec.dimension,
        loader=spec.loader,
        source=spec.source,
        revision=spec.revision,
        licence=spec.licence,
        description=spec.description,
    )


def _language_model(spec: LanguageModelSpec) -> ModelEntry:
    return ModelEntry(
        id=spec.id,
        kind="language_model",
        modality=None,
        dimension=None,
        loader=spec.loader,
        source=spec.source,
        revision=spec.revision,
        licence=spec.licence,
        description=spec.description,
    )
