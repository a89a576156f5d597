"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

import shutil
from collections.abc import Mapping

from shared.catalog import Catalog, EncoderSpec, text_tower
from shared.errors import InvalidRequestError, StorageFullError, TooLargeError
from shared.fine_tuning import FineTuneRequest, Method, TrainEncoder
from shared.fusion_parameters import validate_parameters
from shared.language_tuning import PromptRequest
from shared.queues import Modality
from shared.requests import JobRequest
from shared.schemas import FeaturesRequest, FusionMethod, ItemSource
from shared.settings import Limits, Settings
from shared.storage.imports import allowed_prefix


def check(request: JobRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …), TooLargeError (`too_many_items`), or
    StorageFullError."""
    check_space(settings)
    chosen = request.encoders.chosen()
    specs = {modality: catalog.resolve(modality, encoder) for modality, encoder in chosen.items()}
    if isinstance(request, FeaturesRequest):
        validate_parameters(request.fusion.method, request.fusion.parameters(), chosen, param="fusion")
    elif isinstance(request, FineTuneRequest):
        _check_training(request)
        _check_encoder_training(request, specs)
    elif isinstance(request, PromptRequest) and request.language_model is None and request.features is None:
        text_tower(catalog, specs, request.text_encoder)
    if not isinstance(request, FineTuneRequest):
        _check_not_supervised(specs)
    _check_source(request, tenant, settings)
    longest = settings.limits.job_seconds
    if longest and (request.timeout_seconds or 0) > longest:
        message = f"Jobs have {longest} seconds here; ask for no more, or leave it out."
        raise InvalidRequestError(message, param="timeout_seconds")


def _check_training(request: FineTuneRequest) -> None:
    if request.fusion is not None:
        method, parameters = FusionMethod(request.fusion.method), request.fusion.parameters
        validate_parameters(method, parameters, request.encoders.chosen(), param="fusion.parameters")
    if request.method is Method.ALIGN and request.features is None and len(request.encoders.chosen()) < 2:
        raise InvalidRequestError("`align` needs the encoders of at least two modalities.", param="encoders")


def _check_encoder_training(request: FineTuneRequest, specs: Mapping[Modality, EncoderSpec]) -> None:
    """What is asked of the encoders must be possible with those that are chosen, and honest."""
    how = request.train_encoder
    if request.features is not None:
        if how is not TrainEncoder.FROZEN:
            message = "Encoders are trained on items: give `items` or `input` instead of `features`."
            raise InvalidRequestError(message, param="train_encoder")
        return
    trained = [spec.id for spec in specs.values() if spec.is_trained(how)]
    if not trained:
        if how is not TrainEncoder.FROZEN:
            known = "; ".join(f"{spec.id}: {', '.join(sorted(spec.training)) or 'frozen'}" for spec in specs.values())
            raise InvalidRequestError(f"None of the encoders can be trained so ({known}).", param="train_encoder")
        return
    if request.method is Method.ALIGN:
        message = "`align` learns from no labels, and encoders are trained on them: leave them as they are."
        raise InvalidRequestError(message, param="train_encoder")
    if request.splitting.folds is not None:
        message = f"Cross-validation needs encoders that have not seen the labels, as {', '.join(trained)} will have."
        raise InvalidRequestError(message, param="splitting.folds")


def _check_not_supervised(specs: Mapping[Modality, EncoderSpec]) -> None:
    for modality, spec in specs.items():
        if spec.supervised:
            message = f"{spec.id} is trained on labels by a fine_tune job; name the model that such a job made of it."
            raise InvalidRequestError(message, code="encoder_not_trained", param=f"encoders.{modality}")


def _check_source(request: ItemSource, tenant: str, settings: Settings) -> None:
    most = min(settings.limits.inline_items, settings.limits.items)
    if request.items is not None and len(request.items) > most:
        message = (
            f"{len(request.items)} items are too many for the body of a job ({most} at most); "
            "upload them as a manifest."
        )
        raise TooLargeError(message, code="too_many_items", param="items")
    if request.input is not None and request.input.s3_prefix is not None:
        allowed_prefix(
            request.input.s3_prefix,
            tenant=tenant,
            own_bucket=settings.s3_bucket,
            import_buckets=settings.import_buckets,
        )


def check_space(settings: Settings) -> None:
    """Raises StorageFullError if little disk is left, where that can be seen."""
    if settings.data_dir is not None and shutil.disk_usage(settings.data_dir).free < settings.min_free_bytes:
        raise StorageFullError("Too little disk is left here to take more.")


def timeout_of(requested: int | None, limits: Limits) -> int | None:
    """The seconds that a job gets: those that it asks for, within the limit of all jobs if there is one."""
    return min(filter(None, (requested, limits.job_seconds)), default=None)
