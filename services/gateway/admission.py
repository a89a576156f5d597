"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

from shared.catalog import Catalog
from shared.errors import InvalidRequestError, TooLargeError
from shared.fine_tuning import JobRequest
from shared.schemas import FeaturesRequest, ItemSource
from shared.settings import Limits, Settings
from shared.storage.imports import allowed_prefix


def check(request: JobRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …) or TooLargeError (`too_many_items`)."""
    chosen = request.encoders.chosen()
    for modality, encoder in chosen.items():
        catalog.resolve(modality, encoder)
    if isinstance(request, FeaturesRequest):
        _check_weights(request)
    _check_source(request, tenant, settings)
    longest = settings.limits.job_seconds
    if longest and (request.timeout_seconds or 0) > longest:
        message = f"Jobs have {longest} seconds here; ask for no more, or leave it out."
        raise InvalidRequestError(message, param="timeout_seconds")


def _check_weights(request: FeaturesRequest) -> None:
    for modality in request.fusion.weights:
        if modality not in request.encoders.chosen():
            message = (
                f"There is a weight for {modality}, but no {modality} encoder: drop the weight or choose an encoder."
            )
            raise InvalidRequestError(message, param=f"fusion.weights.{modality}")


def _check_source(request: ItemSource, tenant: str, settings: Settings) -> None:
    if request.items is not None and len(request.items) > settings.limits.inline_items:
        message = (
            f"{len(request.items)} items are too many for the body of a job ({settings.limits.inline_items} at most); "
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


def timeout_of(requested: int | None, limits: Limits) -> int | None:
    """The seconds that a job gets: those that it asks for, within the limit of all jobs if there is one."""
    return min(filter(None, (requested, limits.job_seconds)), default=None)
