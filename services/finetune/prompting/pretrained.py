"""The pretrained models that prompts are put to, brought into memory on a worker when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.catalog import EncoderSpec, text_tower
from shared.errors import InvalidRequestError, JobError
from shared.jobs.encoders import MODEL, encoder_of
from shared.jobs.records import Lease
from shared.jobs.registry import find_model
from shared.language_models import find_language_model
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.loading import load_trainable
from shared.ml.language.adapters import ADAPTER, ADAPTER_CONFIG
from shared.ml.language.loading import load_language_model
from shared.ml.language.tuned import CONFIG, PROJECTOR, TunedConfig, TunedLanguageModel
from shared.ml.models import load_on_worker
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.control import Control
from shared.worker.slices import read_verified

_PARTS = (ADAPTER, ADAPTER_CONFIG, PROJECTOR, CONFIG)


@dataclass(frozen=True)
class Pretrained:
    """How to load each. Raises JobError if it cannot be had."""

    text_tower: Callable[[], Encoder]
    trainable_text_tower: Callable[[], Any]
    language_model: Callable[[], TunedLanguageModel]


def pretrained(context: WorkerContext, lease: Lease, control: Control) -> Pretrained:
    """Those that a job asks for."""
    device = context.settings.worker.device
    return Pretrained(
        text_tower=lambda: load_on_worker(context, _text_tower(context, lease), control),
        trainable_text_tower=lambda: load_trainable(_text_tower(context, lease), device=device),
        language_model=lambda: _language_model(context, lease, control),
    )


def _text_tower(context: WorkerContext, lease: Lease) -> EncoderSpec:
    """The text tower of the model whose other towers made the vectors."""
    catalog = context.catalog
    encoders = {Modality(m): encoder_of(lease.schema, Modality(m), catalog) for m in lease.schema["encoders"]}
    try:
        return text_tower(catalog, encoders, lease.request.get("text_encoder"))
    except InvalidRequestError as error:
        raise JobError(error.message, code=error.error_code, param=error.param) from error


def _language_model(context: WorkerContext, lease: Lease, control: Control) -> TunedLanguageModel:
    """One of the catalogue, or one that a job of the tenant's tuned, on its base model."""
    named: str = lease.request["language_model"]
    files = _files_of(context, lease.tenant, named, control) if named.startswith(MODEL) else {}
    base_id = TunedConfig.model_validate_json(files[CONFIG]).language_model if files else named
    try:
        spec = find_language_model(context.language_models, base_id)
    except InvalidRequestError as error:
        raise JobError(error.message, code=error.error_code, param=error.param) from error
    worker = context.settings.worker
    base = load_language_model(spec, device=worker.device, precision=worker.precision)
    return TunedLanguageModel.load(files, base) if files else TunedLanguageModel.plain(base)


def _files_of(context: WorkerContext, tenant: str, id: str, control: Control) -> dict[str, bytes]:
    def find() -> dict[str, Any]:
        with context.sessions() as session:
            found: dict[str, Any] = find_model(session, tenant, id, param="language_model").spec["files"]
            return found

    stored = control.patiently(find)
    return {
        name: control.patiently(partial(read_verified, context.store, stored[name]["key"], stored[name]["sha256"]))
        for name in _PARTS
        if name in stored
    }
