"""Everything that can be set, from environment variables `TRIVIUM_*`; see `.env.example`.

Entry points call `load_settings()` once and pass the parts on; nothing else reads the environment.
"""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import TriviumError

#: Secrets that people leave in place by mistake; production mode refuses them.
WEAK_SECRETS = frozenset({"", "changeme", "password", "secret", "minioadmin", "postgres", "trivium", "admin"})


class SettingsError(TriviumError):
    """A setting is missing or unusable; the service must not start."""

    code = "invalid_settings"


class Limits(BaseSettings):
    """What one caller may ask for. Above a limit the answer is 413, 422 or 429, and says which limit it was."""

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_MAX_")

    upload_bytes: int = Field(5 * 1024**3, description="one uploaded file")
    json_bytes: int = Field(16 * 1024**2, description="one JSON request body")
    requests_per_second: float = Field(100.0, gt=0, description="of one API key, or of one address without a key")
    request_burst: int = Field(200, ge=1, description="requests that may come at once")
    inline_items: int = Field(10_000, description="items in the body of a job")
    items: int = Field(10_000_000, description="items of one job")
    line_bytes: int = Field(32 * 1024**2, description="one line of a manifest")
    text_bytes: int = Field(1024**2, description="the text of one item")
    media_bytes: int = Field(64 * 1024**2, description="one picture or sound, encoded")
    image_pixels: int = Field(50_000_000, description="one picture, decoded")
    audio_seconds: float = Field(600.0, description="one sound, decoded")
    archive_members: int = Field(20_000_000, description="members of one archive")
    archive_bytes: int = Field(50 * 1024**3, description="one archive, unpacked")
    archive_ratio: float = Field(200.0, description="unpacked to packed bytes of a zip")
    queued_bytes: int = Field(200 * 1024**3, description="input of a tenant's unfinished jobs together")
    waiting_shards: int = Field(200_000, description="shards of one tenant that wait")
    waiting_seconds: float = Field(86_400.0, description="age of a tenant's oldest job that no worker has begun")
    job_seconds: int = Field(0, description="a job's time until it has ended, if it asks for none or more; 0: no limit")
    npz_bytes: int = Field(1024**3, description="results as npz")
    lane_bytes: int = Field(1024**2, description="what an interactive request holds of one modality")
    lane_requests: int = Field(64, description="interactive requests that wait for one model")


class Fetching(BaseSettings):
    """Pictures and sounds that items name by URL: from public addresses only, and not unless switched on."""

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_FETCH_")

    urls: bool = Field(False, description="items may name https:// URLs, which the workers fetch")
    http: bool = Field(False, description="plain http:// too")
    ports: list[int] = Field([80, 443], description="ports that a URL may name")
    networks: list[IPv4Network | IPv6Network] = Field(
        [], description='addresses that are not public but may be fetched from, such as ["10.1.0.0/16"]'
    )
    seconds: float = Field(30.0, description="for one URL, redirects and further tries included")


class Engine(BaseSettings):
    """The job engine's times and sizes."""

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_")

    lease_seconds: float = 30.0
    renew_seconds: float = 5.0
    sweep_seconds: float = 2.0
    idle_poll_seconds: float = 2.0
    max_attempts: int = 4
    starving_seconds: float = Field(10.0, description="past this age a shard goes before those the loaded model suits")
    shard_size: int = 256
    inline_plan_bytes: int = Field(64 * 1024, description="an inline job up to this size is planned as it is accepted")
    retention_days: float = Field(30.0, description="ended jobs, their results and unused files are kept this long")
    orphan_seconds: float = Field(3600.0, description="objects that no row names are deleted after this")
    cache_bytes: int = Field(10 * 1024**3, description="feature cache, per tenant; 0 turns it off")


class WorkerSettings(BaseSettings):
    """One worker process."""

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_")

    decode_processes: int = Field(0, description="0: half the cores, at least one")
    torch_threads: int = Field(0, description="0: the cores that decoding leaves, at least one")
    decode_seconds: float = Field(20.0, description="time limit for decoding one item")
    decode_memory_bytes: int = Field(2 * 1024**3, description="memory limit of one decode process")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    model_memory_bytes: int = Field(8 * 1024**3, description="models kept loaded, least recently used go first")
    training_processes: int = Field(
        0, ge=0, description="that train one model together; 0: one for each GPU, as far as batches are large enough"
    )
    checkpoint_seconds: float = Field(20.0, ge=0, description="training that is killed loses about this much")
    drain_seconds: float = Field(20.0, description="after SIGTERM, time to finish before handing work back")
    heartbeat_file: Path | None = Field(None, description="touched while Postgres hears the worker: for health checks")


class Settings(BaseSettings):
    """What every service needs."""

    model_config = SettingsConfigDict(env_prefix="TRIVIUM_")

    mode: Literal["development", "production"] = "production"
    database_url: SecretStr
    redis_url: SecretStr
    s3_endpoint: str
    s3_public_endpoint: str | None = Field(None, description="as clients outside reach it; for presigned links")
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_bucket: str = "trivium"
    s3_region: str = "us-east-1"
    import_buckets: list[str] = Field(
        [], description="buckets that jobs may read by s3:// prefix; {tenant} is filled in"
    )
    encoders_file: Path | None = None
    language_models_file: Path | None = Field(None, description="further language models, as JSON")
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8000
    trusted_proxies: str = Field("127.0.0.1,::1", description="whose X-Forwarded-For tells the address of a caller")
    metrics_port: int = Field(0, description="where workers and dispatcher serve /metrics; 0 turns it off")
    log_level: str = "INFO"
    min_free_bytes: int = Field(1024**3, description="less free disk than this, where it can be seen: 507")
    data_dir: Path | None = Field(None, description="folder whose free space is watched")

    limits: Limits = Field(default_factory=Limits)
    fetching: Fetching = Field(default_factory=Fetching)
    engine: Engine = Field(default_factory=Engine)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)

    @model_validator(mode="after")
    def _production_has_secrets(self) -> Self:
        if self.mode == "production":
            secrets = {"s3_access_key": self.s3_access_key, "s3_secret_key": self.s3_secret_key}
            weak = [name for name, value in secrets.items() if value.get_secret_value().lower() in WEAK_SECRETS]
            for name, url in {"database_url": self.database_url, "redis_url": self.redis_url}.items():
                if _password(url.get_secret_value()).lower() in WEAK_SECRETS:
                    weak.append(name)
            if weak:
                names = ", ".join(f"TRIVIUM_{name.upper()}" for name in weak)
                raise ValueError(f"production mode needs real secrets, and these are missing or well known: {names}")
        return self


def _password(url: str) -> str:
    credentials, at, _ = url.rpartition("@")
    return credentials.rpartition(":")[2] if at else ""


def load_settings() -> Settings:
    """The settings of this process. Raises SettingsError in words, without the values of secrets."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"TRIVIUM_{'_'.join(str(part) for part in e['loc']).upper()}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(f"These settings cannot be used: {wrong}") from None
