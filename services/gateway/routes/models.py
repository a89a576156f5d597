"""Models: the catalogue's encoders, and those that the tenant's jobs fitted."""

from fastapi import APIRouter

from services.gateway import examples
from services.gateway.auth import CallerDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page_behind
from shared.catalog import EncoderSpec
from shared.errors import NotFoundError
from shared.jobs.registry import fitted_models
from shared.schemas import ModelEntry, Page

router = APIRouter(tags=["models"], responses=COMMON_ERRORS)


@router.get("/v1/models", summary="List models", responses=answers(examples.page_of(examples.MODEL)))
def list_models(services: ServicesDep, caller: CallerDep, limit: Limit = 1000, after: After = None) -> Page[ModelEntry]:
    """The encoders that can be named in a job, then the models that the tenant's jobs made, newest first."""
    with services.sessions() as session:
        fitted = fitted_models(session, caller.tenant)
    built_in = [_entry(spec) for spec in services.catalog.values()]
    return page_behind([*built_in, *fitted], limit, after, lambda model: model.id)


@router.get("/v1/models/{id:path}", summary="Show a model", responses=answers(examples.MODEL, 404))
def get_model(id: str, services: ServicesDep, caller: CallerDep) -> ModelEntry:
    """One model."""
    spec = services.catalog.get(id)
    if spec is not None:
        return _entry(spec)
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
