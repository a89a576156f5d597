"""The checks at the door: what can be known to be wrong with a job before anything of it is stored."""

from shared.catalog import Catalog
from shared.errors import InvalidRequestError, TooLargeError
from shared.schemas import FeaturesRequest
from shared.settings import Settings
from shared.storage import keys


def check(request: FeaturesRequest, tenant: str, settings: Settings, catalog: Catalog) -> None:
    """Raises InvalidRequestError (`unknown_encoder`, `prefix_not_allowed`, …) or TooLargeError (`too_many_items`)."""
    chosen = request.encoders.chosen()
    for modality, encoder in chosen.items():
        catalog.resolve(modality, encoder)
    for modality in request.fusion.weights:
        if modality not in chosen:
            message = (
                f"There is a weight for {modality}, but no {modality} encoder: drop the weight or choose an encoder."
            )
            raise InvalidRequestError(message, param=f"fusion.weights.{modality}")
    if request.items is not None and len(request.items) > settings.limits.inline_items:
        message = (
            f"{len(request.items)} items are too many for the body of a job ({settings.limits.inline_items} at most); "
            "upload them as a manifest."
        )
        raise TooLargeError(message, code="too_many_items", param="items")
    if request.input is not None and request.input.s3_prefix is not None:
        _check_prefix(request.input.s3_prefix, tenant, settings)


def _check_prefix(prefix: str, tenant: str, settings: Settings) -> None:
    place = prefix.removeprefix("s3://")
    own = f"{settings.s3_bucket}/{keys.tenant_imports(tenant)}"
    allowed = [own]
    if not place.startswith(f"{settings.s3_bucket}/"):
        # The platform's own bucket holds every tenant's data: of it, only the folder for imports is ever open.
        allowed = [entry.replace("{tenant}", tenant).rstrip("/") + "/" for entry in settings.import_buckets]
    if not any(place.startswith(folder) for folder in allowed):
        message = f"Jobs may not read {prefix!r}; put the manifest under s3://{own} or upload it as a file."
        raise InvalidRequestError(message, code="prefix_not_allowed", param="input.s3_prefix")
