"""From which S3 prefixes a tenant's jobs may read."""

from collections.abc import Sequence

from shared.errors import InvalidRequestError
from shared.storage import keys


def allowed_prefix(s3_prefix: str, *, tenant: str, own_bucket: str, import_buckets: Sequence[str]) -> tuple[str, str]:
    """Bucket and folder of `s3://bucket/folder/`, if the tenant may read there: in the platform's own bucket under
    `imports/<tenant>/`, elsewhere in the buckets (or `bucket/folder/`) of the setting `import_buckets`.

    Raises InvalidRequestError (`prefix_not_allowed`).
    """
    bucket, _, folder = s3_prefix.removeprefix("s3://").partition("/")
    if folder and not folder.endswith("/"):
        folder += "/"
    parts = folder.split("/")[:-1]
    sound = all(part not in {"", ".", ".."} for part in parts)  # some storage folds a//b and a/./b into a/b
    allowed = [(own_bucket, keys.tenant_imports(tenant))]
    for entry in import_buckets:
        name, _, inside = entry.replace("{tenant}", tenant).partition("/")
        if name != own_bucket:
            allowed.append((name, inside if not inside or inside.endswith("/") else inside + "/"))
    if not sound or not any(bucket == name and folder.startswith(inside) for name, inside in allowed):
        places = ", ".join(f"s3://{name}/{inside}" for name, inside in allowed)
        message = f"Jobs of this tenant cannot read {s3_prefix!r}, only what is under: {places}."
        raise InvalidRequestError(message, code="prefix_not_allowed", param="input.s3_prefix")
    return bucket, folder
