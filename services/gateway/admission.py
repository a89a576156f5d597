"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

import shutil

from shared.catalog import Catalog
from shared.errors import InvalidRequestError, StorageFullError, TooLargeError
from shared.schemas import FeaturesRequest
from shared.settings import Limits, Settings
from shared.storage.imports import allowed_prefix


def check(request: FeaturesRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …), TooLargeError (`too_many_items`), or
    StorageFullError."""
    check_space(settings)
    chosen = request.encoders.chosen()
    for modality, encoder in chosen.items():
        catalog.resolve(modality, encoder)
    for modality in request.fusion.weights:
        if modality not in chosen:
            message = (
                f"There is a weight for {modality}, but no {modality} encoder: drop the weight or choose an encoder."
            )
            raise InvalidRequestError(message, param=f"fusion.weights.{modality}")
    most = min(settings.limits.inline_items, settings.limits.items)
    if request.items is not None and len(request.items) > most:
        message = (
            f"{len(request.items)} items are too many for the body of a job ({most} at most); "
            "upload them as a manifest."
        )
        raise TooLargeError(message, code="too_many_items", param="items")
    longest = settings.limits.job_seconds
    if longest and (request.timeout_seconds or 0) > longest:
        message = f"Jobs have {longest} seconds here; ask for no more, or leave it out."
        raise InvalidRequestError(message, param="timeout_seconds")
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
