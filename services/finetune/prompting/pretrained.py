"""The pretrained models that prompts are put to, brought into memory on a worker when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.catalog import EncoderSpec, text_tower
from shared.errors import InvalidRequestError, JobError
from shared.jobs.encoders import encoder_of
from shared.jobs.records import Lease
from shared.ml.encoders.base import Encoder
from shared.ml.encoders.loading import load_trainable
from shared.ml.language.tuned import TunedLanguageModel
from shared.ml.models import load_on_worker
from shared.queues import Modality
from shared.worker.context import WorkerContext
from shared.worker.control import Control


@dataclass(frozen=True)
class Pretrained:
    """How to load each. Raises JobError if it cannot be had."""

    text_tower: Callable[[], Encoder]
    trainable_text_tower: Callable[[], Any]
    language_model: Callable[[], TunedLanguageModel]


def pretrained(
    context: WorkerContext, lease: Lease, control: Control, language_model: Callable[[], TunedLanguageModel]
) -> Pretrained:
    """Those that a job asks for."""
    device = context.settings.worker.device
    return Pretrained(
        text_tower=lambda: load_on_worker(context, _text_tower(context, lease), control),
        trainable_text_tower=lambda: load_trainable(_text_tower(context, lease), device=device),
        language_model=language_model,
    )


def _text_tower(context: WorkerContext, lease: Lease) -> EncoderSpec:
    """The text tower of the model whose other towers made the vectors."""
    catalog = context.catalog
    encoders = {Modality(m): encoder_of(lease.schema, Modality(m), catalog) for m in lease.schema["encoders"]}
    try:
        return text_tower(catalog, encoders, lease.request.get("text_encoder"))
    except InvalidRequestError as error:
        raise JobError(error.message, code=error.error_code, param=error.param) from error
