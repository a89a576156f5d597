"""Where objects live in the bucket. Keys are made here only; those of shards hold the lease token, so that two attempts
never write the same key and readers, who go through rows, see the winner's."""

from uuid import UUID

from shared.queues import Stage

BLOBS = "blobs/"
CACHE = "cache/"
JOBS = "jobs/"
MODELS = "models/"
UPLOADS = "uploads/"


def blob(tenant: str, sha256: str) -> str:
    """The bytes of an uploaded file, once per tenant and content."""
    return f"{BLOBS}{tenant}/{sha256[:2]}/{sha256}"


def upload(upload_id: str) -> str:
    """An upload under way, before its hash is known."""
    return f"{UPLOADS}{upload_id}"


def job_prefix(job_id: str) -> str:
    """Everything that a job wrote, except models and cached vectors."""
    return f"{JOBS}{job_id}/"


def inline_items(job_id: str) -> str:
    """The items of an inline job that is planned later."""
    return f"{JOBS}{job_id}/inline.jsonl"


def item_slice(job_id: str, index: int, token: UUID) -> str:
    """One slice of a job's planned items."""
    return f"{JOBS}{job_id}/plan/{index:06d}-{token.hex}.jsonl"


def repacked(job_id: str, token: UUID) -> str:
    """A zip's members, repacked as a tar so that workers can read ranges."""
    return f"{JOBS}{job_id}/plan/media-{token.hex}.tar"


def shard_result(job_id: str, stage: Stage, index: int, token: UUID) -> str:
    """What one attempt at an extraction shard wrote."""
    return f"{JOBS}{job_id}/{stage.value}/{index:06d}-{token.hex}.safetensors"


def feature_part(job_id: str, index: int, token: UUID) -> str:
    """One Parquet part of a feature set."""
    return f"{JOBS}{job_id}/features/part-{index:06d}-{token.hex}.parquet"


def feature_manifest(job_id: str) -> str:
    """The list of a feature set's parts; written when the job has succeeded."""
    return f"{JOBS}{job_id}/features/manifest.json"


def model(model_id: str, token: UUID, filename: str) -> str:
    """A file of a model that a job made."""
    return f"{MODELS}{model_id}/{token.hex}/{filename}"


def cache_segment(tenant: str, fingerprint: str, token: UUID) -> str:
    """Cached vectors of one encoder."""
    return f"{CACHE}{tenant}/{fingerprint[:16]}/{token.hex}.safetensors"


def tenant_imports(tenant: str) -> str:
    """The folder of the platform's own bucket from which a tenant's jobs may read by prefix."""
    return f"imports/{tenant}/"
