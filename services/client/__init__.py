"""The Python client (`Client`, `AsyncClient`) and the `trivium` command line (`cli.py`).

    with Client() as trivium:
        job = trivium.features("data.jsonl", encoders={"text": "all-minilm-l6-v2"}, fusion={"method": "weighted"})
        trivium.jobs.wait(job.id)
        trivium.jobs.results(job.id, "features.parquet")

What is sent is built in `requests.py`, what is done with it is told in `flows.py`; the two faces only do the I/O.
"""

from services.client.async_client import AsyncClient
from services.client.client import Client
from services.client.errors import (
    ApiError,
    AuthenticationFailed,
    ClientError,
    Conflict,
    ConnectionFailed,
    DamagedDownload,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerFailed,
    TooLarge,
    Unavailable,
    WaitTimeout,
)
from services.client.retries import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationFailed",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "DamagedDownload",
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Retries",
    "ServerFailed",
    "TooLarge",
    "Unavailable",
    "WaitTimeout",
]
