"""What a job is made from, beside its items: a model that says which encoders are used, a feature set that must fit."""

from typing import Any

from sqlalchemy.orm import Session

from shared.catalog import Catalog
from shared.errors import InvalidRequestError
from shared.fine_tuning import LANGUAGE_METHODS, IndexRequest, PredictRequest
from shared.jobs import registry, repository
from shared.jobs.encoders import MODEL, encoder_ids
from shared.jobs.models import INDEX_DIMENSION, Model
from shared.language_models import LanguageModels, find_language_model
from shared.preprocessing import Preprocessing
from shared.queues import Modality
from shared.requests import JobRequest
from shared.schemas import Encoders, FeaturesRequest, ItemSource

#: Kinds of models that say something about an item, and those that make one vector of its vectors.
_PREDICT = frozenset({"classifier", "regressor"})
_FUSE = _PREDICT | {"align"}


def settle(session: Session, tenant: str, request: JobRequest) -> JobRequest:
    """The request with what its model decides: items are encoded as those were that the model was trained on.

    Raises NotFoundError (`model_not_found`, `features_not_found`), ConflictError, InvalidRequestError
    (`unsuitable_model`, `unsuitable_features`).
    """
    features = getattr(request, "features", None)
    source = None if features is None else repository.find_features(session, tenant, features)
    if isinstance(request, FeaturesRequest):
        return request if request.fusion.model is None else _fused_by(session, tenant, request, request.fusion.model)
    if not isinstance(request, PredictRequest | IndexRequest):
        return request
    find = find_aligner if isinstance(request, IndexRequest) else find_predictor
    model = find(session, tenant, request.model)
    if source is not None:
        _check_fit(model, source.schema)
        return request
    return request.model_copy(update=_encoding(model, request))


def find_predictor(session: Session, tenant: str, id: str) -> Model:
    """A model that says something about items. Raises NotFoundError, InvalidRequestError (`unsuitable_model`)."""
    model = registry.find_model(session, tenant, id)
    if model.kind not in _PREDICT:
        message = f"The model {model.id!r} is a {model.kind}; predictions need a classifier or a regressor."
        raise InvalidRequestError(message, code="unsuitable_model", param="model")
    return model


def find_aligner(session: Session, tenant: str, id: str) -> Model:
    """A model in whose space items can be searched.

    Raises NotFoundError, InvalidRequestError (`unsuitable_model`, `too_many_dimensions`).
    """
    model = registry.find_model(session, tenant, id)
    if model.kind != "align":
        message = f"The model {model.id!r} is a {model.kind}; search needs one that a job of the method `align` made."
        raise InvalidRequestError(message, code="unsuitable_model", param="model")
    if model.dimension > INDEX_DIMENSION:
        message = (
            f"The space of the model {model.id!r} has {model.dimension} dimensions; an index takes {INDEX_DIMENSION} "
            "at most. Train one with a smaller `dimension`."
        )
        raise InvalidRequestError(message, code="too_many_dimensions", param="model")
    return model


def check_language_model(session: Session, tenant: str, models: LanguageModels, id: str) -> None:
    """A language model must be in the catalogue, or be one that a job of the tenant's tuned.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (`unknown_language_model`, `unsuitable_model`).
    """
    if not id.startswith(MODEL):
        find_language_model(models, id)
        return
    model = registry.find_model(session, tenant, id, param="language_model")
    if model.kind not in LANGUAGE_METHODS:
        message = f"The model {model.id!r} is a {model.kind}, not a language model."
        raise InvalidRequestError(message, code="unsuitable_model", param="language_model")


def find_encoders(model: Model, catalog: Catalog) -> dict[Modality, str]:
    """Whose vectors a model takes: encoders' ids in the catalogue, and the ids of models that a job made.

    Raises InvalidRequestError (`unknown_encoder`) if the catalogue has one no more.
    """
    named = model.spec["fine_tuned"]["encoders"]
    encoders: dict[Modality, str] = {m: named[m] for m in Modality if m in named}
    for modality, id in encoders.items():
        if not id.startswith(MODEL):
            catalog.resolve(modality, id)
    return encoders


def _fused_by(session: Session, tenant: str, request: FeaturesRequest, id: str) -> FeaturesRequest:
    model = registry.find_model(session, tenant, id)
    if model.kind not in _FUSE:
        message = f"The model {model.id!r} is a {model.kind}; vectors are fused by what a fine_tune job made."
        raise InvalidRequestError(message, code="unsuitable_model", param="fusion.model")
    fusion = request.fusion.model_copy(update={"dimension": model.dimension})
    return request.model_copy(update={**_encoding(model, request), "fusion": fusion})


def _encoding(model: Model, request: ItemSource) -> dict[str, Any]:
    """How items are encoded for a model: as those were that it was trained on."""
    if {"encoders", "preprocessing"} & request.model_fields_set:
        message = "A model decides itself how items are encoded: leave out encoders and preprocessing."
        raise InvalidRequestError(message, param="encoders")
    encoders = dict.fromkeys(Encoders.model_fields, None) | model.spec["fine_tuned"]["encoders"]
    return {
        "encoders": Encoders(**encoders),
        "preprocessing": Preprocessing.model_validate(model.spec["preprocessing"]),
    }


def _check_fit(model: Model, schema: dict[str, Any]) -> None:
    """The feature set must hold the vectors of the model's encoders, for at least one of its modalities."""
    needed = model.spec["fine_tuned"]["encoders"]
    held = encoder_ids(schema)
    if not needed.keys() & held.keys() or any(held[m] != id for m, id in needed.items() if m in held):
        message = f"The feature set was made with the encoders {held}; the model takes {needed}."
        raise InvalidRequestError(message, code="unsuitable_features", param="features")
