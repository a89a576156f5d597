"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

from shared.catalog import Catalog
from shared.errors import TooLargeError
from shared.fusion_parameters import validate_parameters
from shared.schemas import FeaturesRequest
from shared.settings import Settings
from shared.storage.imports import allowed_prefix


def check(request: FeaturesRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …) or TooLargeError (`too_many_items`)."""
    chosen = request.encoders.chosen()
    for modality, encoder in chosen.items():
        catalog.resolve(modality, encoder)
    validate_parameters(request.fusion.method, request.fusion.parameters(), chosen, param="fusion")
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
