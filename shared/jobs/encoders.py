"""Which encoders a job uses: a catalogue's, or models that jobs made, which a request names by id as it would those."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from shared.catalog import Catalog, EncoderSpec, FittedEncoder
from shared.errors import InvalidRequestError
from shared.jobs import registry
from shared.queues import Modality
from shared.schemas import Encoders

#: How the ids of models begin.
MODEL = "model-"


def named_models(encoders: Mapping[str, str | None]) -> list[str]:
    """The ids of models among the encoders of a request."""
    return sorted({id for id in encoders.values() if id is not None and id.startswith(MODEL)})


def with_models(session: Session, tenant: str, catalog: Catalog, encoders: Encoders) -> Catalog:
    """The catalogue, and in it the tenant's models that these encoders name.

    Raises NotFoundError (`model_not_found`), InvalidRequestError (`unsuitable_model`).
    """
    named = {m: id for m, id in encoders.chosen().items() if id not in catalog and id.startswith(MODEL)}
    return Catalog([*catalog.values(), *(fitted_encoder(session, tenant, m, id) for m, id in named.items())])


def fitted_encoder(session: Session, tenant: str, modality: Modality, id: str) -> FittedEncoder:
    """The tenant's model of this id. Raises NotFoundError (`model_not_found`), InvalidRequestError
    (`unsuitable_model`)."""
    param = f"encoders.{modality}"
    model = registry.find_model(session, tenant, id, param=param)
    if model.kind != "fitted_encoder" or model.modality != modality:
        kind = f"{model.modality} encoder" if model.kind == "fitted_encoder" else model.kind
        message = f"The model {id!r} is a {kind}; what encodes {modality} must be a {modality} encoder."
        raise InvalidRequestError(message, code="unsuitable_model", param=param)
    spec = {name: model.spec[name] for name in EncoderSpec.model_fields.keys() & model.spec.keys()}
    changed = {"id": id, "model": id, "files": model.spec["files"], "fitted": False, "supervised": False}
    return FittedEncoder.model_validate({**spec, **changed})


def encoder_of(schema: Mapping[str, Any], modality: Modality, catalog: Catalog) -> EncoderSpec:
    """What encodes a modality of a job: a FittedEncoder if a job made it. Raises InvalidRequestError."""
    chosen = schema["encoders"][modality.value]["id"]
    made = schema.get("fitted_models", {}).get(modality.value)
    if made is None:
        return catalog.resolve(modality, chosen)
    # Jobs that were planned by an earlier release have no spec there.
    spec = made.get("spec") or catalog.resolve(modality, chosen).model_dump(mode="json")
    return FittedEncoder.model_validate({**spec, "model": made["id"], "files": made["files"]})


def encoder_ids(schema: Mapping[str, Any]) -> dict[str, str]:
    """By modality whose vectors a job's feature set holds: a model's id if a job made the encoder."""
    made = schema.get("fitted_models", {})
    return {m: made[m]["id"] if m in made else encoder["id"] for m, encoder in schema["encoders"].items()}


def in_schema(encoders: Mapping[Modality, FittedEncoder]) -> dict[str, Any]:
    """What a job's schema says of the models that encode its modalities: `encoder_of` reads it."""
    entries = {m.value: encoder.model_dump(mode="json") for m, encoder in encoders.items()}
    return {
        "fitted_models": {
            m: {"id": entry.pop("model"), "files": entry.pop("files"), "spec": entry} for m, entry in entries.items()
        }
    }
