"""What a job is made from, beside its items: a model that says which encoders are used, a feature set that must fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from shared.catalog import Catalog, EncoderSpec
from shared.errors import InvalidRequestError, NotFoundError
from shared.fine_tuning import LANGUAGE_METHODS, IndexRequest, PredictRequest
from shared.jobs import registry, repository
from shared.jobs.encoders import MODEL, encoder_ids, fitted_encoder
from shared.jobs.models import INDEX_DIMENSION, Model
from shared.jobs.prompts import find_prompt
from shared.language_models import LanguageModels, LanguageModelSpec, find_language_model
from shared.language_tuning import InstructionRequest, LanguageSource, PromptRequest
from shared.preprocessing import Preprocessing
from shared.prompts import PromptTemplate
from shared.queues import Modality
from shared.requests import JobRequest
from shared.schemas import Encoders, FeaturesRequest, ItemSource

#: Kinds of models that say something about an item, and those that make one vector of its vectors.
_PREDICT = frozenset({"classifier", "regressor"})
_FUSE = _PREDICT | {"align"}


def settle(
    session: Session, tenant: str, request: JobRequest, language_models: LanguageModels, catalog: Catalog
) -> JobRequest:
    """The request with what its model decides: items are encoded as those were that the model was trained on, or, by a
    language model's own vision tower, as it sees them; with prompts in the place of their ids.

    Raises NotFoundError (`model_not_found`, `features_not_found`, `prompt_not_found`), ConflictError,
    InvalidRequestError (`unsuitable_model`, `unsuitable_features`, `unknown_encoder`, `unsuitable_encoder`).
    """
    features = getattr(request, "features", None)
    source = None if features is None else repository.find_features(session, tenant, features)
    if isinstance(request, FeaturesRequest):
        return request if request.fusion.model is None else _fused_by(session, tenant, request, request.fusion.model)
    if isinstance(request, InstructionRequest | PromptRequest):
        changed = _encoders_of(session, tenant, request, language_models, catalog)
        return request.model_copy(update=changed | _prompts_of(session, tenant, request))
    if not isinstance(request, PredictRequest | IndexRequest):
        return request
    if isinstance(request, IndexRequest):
        model = find_aligner(session, tenant, request.model)
        if source is not None:
            _check_fit(model, source.schema, reads_text=False)
            return request
        return request.model_copy(update=_encoding(model, request))
    if request.model in language_models:
        _check_encoding(request)
        own = own_encoder(language_models[request.model], catalog)
        if source is not None and own is not None:
            _check_vectors({Modality.IMAGE: own}, source.schema)
        return request.model_copy(update={"generates": True, "encoders": Encoders(text=None, image=own, audio=None)})
    model = registry.find_model(session, tenant, request.model)
    generates = model.kind in LANGUAGE_METHODS
    if not generates:
        _check_predicts(model)
        _check_not_drawn(request)
    if source is not None:
        _check_fit(model, source.schema, reads_text=generates)
        return request.model_copy(update={"generates": generates})
    return request.model_copy(update={**_encoding(model, request), "generates": generates})


def find_predictor(session: Session, tenant: str, id: str) -> Model:
    """A model that says something about items. Raises NotFoundError, InvalidRequestError (`unsuitable_model`)."""
    model = registry.find_model(session, tenant, id)
    _check_predicts(model)
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


@dataclass(frozen=True)
class Speaker:
    """A language model that somebody talks to, and whose vectors of pictures and sounds it takes."""

    id: str
    encoders: Mapping[Modality, str]
    preprocessing: Mapping[str, dict[str, Any]]


def find_speaker(
    session: Session, tenant: str, id: str, *, language_models: LanguageModels, catalog: Catalog
) -> Speaker:
    """A language model: of the catalogue, or one that a job of the tenant's tuned.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (`unsuitable_model`, `unknown_encoder`).
    """
    if id in language_models:
        own = own_encoder(language_models[id], catalog)
        return Speaker(id, {} if own is None else {Modality.IMAGE: own}, {})
    if id not in catalog and not id.startswith(MODEL):
        message = f"There is no model {id!r}; `GET /v1/models` lists those that there are."
        raise NotFoundError(message, code="model_not_found", param="model")
    model = None if id in catalog else registry.find_model(session, tenant, id)
    if model is None or model.kind not in LANGUAGE_METHODS:
        kind = "encoder" if model is None else model.kind
        message = f"The model {id!r} is no language model but of the kind {kind}: it cannot be talked to."
        raise InvalidRequestError(message, code="unsuitable_model", param="model")
    return Speaker(id, find_encoders(model, catalog), model.spec["preprocessing"])


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


def own_encoder(spec: LanguageModelSpec, catalog: Catalog) -> str | None:
    """The encoder that is a language model's own vision tower, if it has one.

    Raises InvalidRequestError (`unknown_encoder`, `unsuitable_encoder`) if the catalogue's is not that.
    """
    if spec.image_encoder is None:
        return None
    encoder = catalog.get(spec.image_encoder)
    if encoder is None:
        message = (
            f"The language model {spec.id} reads pictures by the encoder {spec.image_encoder}, which the catalogue "
            "does not have: add it to the encoders file."
        )
        raise InvalidRequestError(message, code="unknown_encoder", param="encoders.image")
    if (encoder.loader, encoder.source, encoder.revision) != ("vision_tokens", spec.source, spec.revision):
        message = (
            f"The encoder {encoder.id} is not the vision tower of the language model {spec.id}: in the encoders file "
            "give it the loader vision_tokens, and source and revision of that model."
        )
        raise InvalidRequestError(message, code="unsuitable_encoder", param="encoders.image")
    return encoder.id


def _encoders_of(
    session: Session,
    tenant: str,
    request: InstructionRequest | PromptRequest,
    language_models: LanguageModels,
    catalog: Catalog,
) -> dict[str, Any]:
    """The encoders of pictures and sounds that the request leaves out: of a language model that reads pictures itself
    its own, of a tuned one those of its training, beside which it cannot have others."""
    id, named = request.language_model, _named(request)
    if id is None:
        return {}
    wanted: dict[str, str] = {}
    if id not in language_models:
        trained = registry.find_model(session, tenant, id, param="language_model").spec["fine_tuned"]["encoders"]
        wanted = {m: trained[m] for m in (Modality.IMAGE, Modality.AUDIO) if m in trained}
        if request.features is not None:
            _check_vectors(wanted, repository.find_features(session, tenant, request.features).schema)
        _check_same(wanted, {m: encoder for m, encoder in request.encoders.chosen().items() if m in named})
    elif request.features is None and "image" not in named:
        own = own_encoder(language_models[id], catalog)
        wanted = {} if own is None else {Modality.IMAGE: own}
    left_out = {str(m): encoder for m, encoder in wanted.items() if m not in named}
    return {"encoders": request.encoders.model_copy(update=left_out)} if left_out and request.features is None else {}


def _check_same(trained: Mapping[str, str], chosen: Mapping[Modality, str]) -> None:
    """A tuned model goes on with the encoders that it was trained with."""
    for modality, encoder in chosen.items():
        if trained.get(modality, encoder) != encoder:
            message = (
                f"The model was trained on {modality} by the encoder {trained[modality]}, and reads no other's "
                "vectors: leave the encoder out."
            )
            raise InvalidRequestError(message, code="unsuitable_encoder", param=f"encoders.{modality}")


def _named(request: ItemSource) -> set[str]:
    """The modalities whose encoder the request itself says."""
    return request.encoders.model_fields_set if "encoders" in request.model_fields_set else set()


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


def _prompts_of(session: Session, tenant: str, request: LanguageSource) -> dict[str, Any]:
    """What changes of it: the prompts that it names by id as they are now, and their words drawn on the pictures."""

    def found(named: PromptTemplate | str | None, param: str) -> PromptTemplate | None:
        return find_prompt(session, tenant, named, param=param).prompt if isinstance(named, str) else named

    changed: dict[str, Any] = {"prompt": found(request.prompt, "prompt")}
    templates = [changed["prompt"]]
    if isinstance(request, PromptRequest) and request.prompts is not None:
        templates = changed["prompts"] = [found(named, "prompts") for named in request.prompts]
    drawn = {template.image_text for template in templates if template is not None}
    if len(drawn) > 1:
        message = "Pictures are encoded once: all prompts must have the same image_text."
        raise InvalidRequestError(message, param="prompts")
    words = next(iter(drawn), None)
    if words is not None:
        if request.features is not None:
            message = "The features are there already: words can be drawn on pictures only before they are encoded."
            raise InvalidRequestError(message, param="prompt")
        image = request.preprocessing.image.model_copy(update={"drawn_text": words})
        changed["preprocessing"] = request.preprocessing.model_copy(update={"image": image})
    return changed


def find_encoder(session: Session, tenant: str, catalog: Catalog, id: str) -> EncoderSpec:
    """What makes vectors of a text, picture or sound: a catalogue's encoder, or one that a job of the tenant made.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (`encoder_not_trained`, `unsuitable_model`).
    """
    spec = catalog.get(id)
    if spec is None:
        model = registry.find_model(session, tenant, id)
        if model.kind != "fitted_encoder" or model.modality is None:
            message = f"The model {id!r} is a {model.kind}; vectors are made by an encoder."
            raise InvalidRequestError(message, code="unsuitable_model", param="model")
        return fitted_encoder(session, tenant, Modality(model.modality), id)
    if spec.fitted:
        message = f"{id} is fitted on the items of a job; name the model that such a job made of it."
        raise InvalidRequestError(message, code="encoder_not_trained", param="model")
    return spec


def _fused_by(session: Session, tenant: str, request: FeaturesRequest, id: str) -> FeaturesRequest:
    model = registry.find_model(session, tenant, id)
    if model.kind not in _FUSE:
        message = f"The model {model.id!r} is a {model.kind}; vectors are fused by what a fine_tune job made."
        raise InvalidRequestError(message, code="unsuitable_model", param="fusion.model")
    fusion = request.fusion.model_copy(update={"dimension": model.dimension})
    return request.model_copy(update={**_encoding(model, request), "fusion": fusion})


def _encoding(model: Model, request: ItemSource) -> dict[str, Any]:
    """How items are encoded for a model: as those were that it was trained on."""
    _check_encoding(request)
    encoders = dict.fromkeys(Encoders.model_fields, None) | model.spec["fine_tuned"]["encoders"]
    return {
        "encoders": Encoders(**encoders),
        "preprocessing": Preprocessing.model_validate(model.spec["preprocessing"]),
    }


def _check_encoding(request: ItemSource) -> None:
    if {"encoders", "preprocessing"} & request.model_fields_set:
        message = "A model decides itself how items are encoded: leave out encoders and preprocessing."
        raise InvalidRequestError(message, param="encoders")


def _check_predicts(model: Model) -> None:
    if model.kind not in _PREDICT:
        message = f"The model {model.id!r} is of the kind {model.kind}; predictions need a classifier or a regressor."
        if model.kind in LANGUAGE_METHODS:
            message = f"The model {model.id!r} is a language model: it answers at `/v1/chat/completions`, or to a job."
        raise InvalidRequestError(message, code="unsuitable_model", param="model")


def _check_not_drawn(request: PredictRequest) -> None:
    for name in ("generation", "prompt"):
        if getattr(request, name) is not None:
            message = f"The model {request.model!r} is no language model: leave out {name}."
            raise InvalidRequestError(message, param=name)


def _check_fit(model: Model, schema: dict[str, Any], *, reads_text: bool) -> None:
    """The feature set must hold the vectors of the model's encoders, for at least one of its modalities, unless the
    model reads the text itself."""
    needed = model.spec["fine_tuned"]["encoders"]
    if not (reads_text or needed.keys() & encoder_ids(schema).keys()):
        raise _unfit(needed, schema)
    _check_vectors(needed, schema)


def _check_vectors(needed: Mapping[str, str], schema: dict[str, Any]) -> None:
    """What the feature set holds of these modalities must be vectors of these encoders."""
    held = encoder_ids(schema)
    if any(held[m] != id for m, id in needed.items() if m in held):
        raise _unfit(needed, schema)


def _unfit(needed: Mapping[str, str], schema: dict[str, Any]) -> InvalidRequestError:
    takes = {str(modality): id for modality, id in needed.items()}
    message = f"The feature set was made with the encoders {encoder_ids(schema)}; the model takes {takes}."
    return InvalidRequestError(message, code="unsuitable_features", param="features")
