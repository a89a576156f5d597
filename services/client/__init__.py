"""The Python client (`Client`, `AsyncClient`) and the `trivium` command line (`cli.py`)."""

from services.client.async_client import AsyncClient
from services.client.client import Client
from services.client.errors import (
    ApiError,
    AuthenticationFailed,
    ClientError,
    Conflict,
    ConnectionFailed,
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
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Retries",
    "ServerFailed",
    "TooLarge",
    "Unavailable",
    "WaitTimeout",
]
