"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

import shutil

from shared.catalog import Catalog
from shared.errors import InvalidRequestError, StorageFullError, TooLargeError
from shared.fine_tuning import FineTuneRequest, JobRequest, Method
from shared.fusion_parameters import validate_parameters
from shared.schemas import FeaturesRequest, FusionMethod, ItemSource
from shared.settings import Limits, Settings
from shared.storage.imports import allowed_prefix


def check(request: JobRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …), TooLargeError (`too_many_items`), or
    StorageFullError."""
    check_space(settings)
    chosen = request.encoders.chosen()
    for modality, encoder in chosen.items():
        catalog.resolve(modality, encoder)
    if isinstance(request, FeaturesRequest):
        validate_parameters(request.fusion.method, request.fusion.parameters(), chosen, param="fusion")
    elif isinstance(request, FineTuneRequest):
        _check_training(request)
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
