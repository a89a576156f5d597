"""Where objects live in the bucket. Keys are made here only; those of shards hold the lease token, so that two attempts
never write the same key and readers, who go through rows, see the winner's."""

from uuid import UUID

from shared.queues import Stage

BLOBS = "blobs/"
CACHE = "cache/"
JOBS = "jobs/"
MODELS = "models/"


def blob(tenant: str, upload_id: str) -> str:
    """The bytes of an upload; the `blobs` row that names the key holds their hash.

    Each upload has a key of its own, so that nothing is copied once the hash is known, and so that deleting the last
    file of some content never meets a new upload of the same.
    """
    return f"{BLOBS}{tenant}/{upload_id}"


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


def unpacked(job_id: str, token: UUID) -> str:
    """A gzipped manifest or archive, unpacked so that it can be read by ranges."""
    return f"{JOBS}{job_id}/plan/unpacked-{token.hex}"


def media_pack(job_id: str, index: int, token: UUID) -> str:
    """Pictures and sounds that came inside a manifest; slices name ranges of it."""
    return f"{JOBS}{job_id}/plan/media-{index:06d}-{token.hex}.bin"


def shard_result(job_id: str, stage: Stage, index: int, token: UUID) -> str:
    """What one attempt at an extraction shard wrote."""
    return f"{JOBS}{job_id}/{stage.value}/{index:06d}-{token.hex}.safetensors"


def splits(job_id: str) -> str:
    """Which items train, validate and test; whoever works it out, it comes out the same."""
    return f"{JOBS}{job_id}/splits.json"


def checkpoint(job_id: str, stage: Stage, token: UUID, name: str, number: int) -> str:
    """What training left to resume from."""
    return f"{JOBS}{job_id}/{stage.value}/{token.hex}-{number:06d}-{name}"


def prediction_part(job_id: str, index: int, token: UUID) -> str:
    """One Parquet part of a job's predictions."""
    return f"{JOBS}{job_id}/predictions/part-{index:06d}-{token.hex}.parquet"


def feature_part(job_id: str, index: int, token: UUID) -> str:
    """One Parquet part of a feature set."""
    return f"{JOBS}{job_id}/features/part-{index:06d}-{token.hex}.parquet"


def feature_manifest(job_id: str) -> str:
    """The list of a feature set's parts; written when the job has succeeded."""
    return f"{JOBS}{job_id}/features/manifest.json"


def prediction_manifest(job_id: str) -> str:
    """The list of the parts of a job's predictions."""
    return f"{JOBS}{job_id}/predictions/manifest.json"


def model_prefix(model_id: str) -> str:
    """Everything of a model that a job made."""
    return f"{MODELS}{model_id}/"


def model(model_id: str, token: UUID, filename: str) -> str:
    """A file of a model that a job made."""
    return f"{MODELS}{model_id}/{token.hex}/{filename}"


def cache_segment(tenant: str, fingerprint: str, token: UUID) -> str:
    """Cached vectors of one encoder."""
    return f"{CACHE}{tenant}/{fingerprint[:16]}/{token.hex}.safetensors"


def tenant_imports(tenant: str) -> str:
    """The folder of the platform's own bucket from which a tenant's jobs may read by prefix."""
    return f"imports/{tenant}/"
