"""Who is calling: an API key stands for a tenant; development mode lets callers in without one."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from services.gateway.deps import ServicesDep
from shared.errors import AuthenticationError, PermissionDeniedError, UnavailableError
from shared.jobs.keys import find_key

#: Whose things those are that development mode lets in without a key.
DEVELOPMENT_TENANT = "default"

#: Postgres may take so long to say whose a key is: some callers have deadlines of their own.
PATIENCE_SECONDS = 5.0

#: Only describes the scheme in the OpenAPI document; `authenticate` reads the header itself.
_scheme = HTTPBearer(auto_error=False, description="An API key, `sk-…`. Development mode needs none.")


@dataclass(frozen=True)
class Caller:
    """The tenant that a request acts for; `admin` keys may also manage keys."""

    tenant: str
    admin: bool


async def authenticate(request: Request, services: ServicesDep, _: Annotated[object, Depends(_scheme)]) -> Caller:
    """The caller of a request. Raises AuthenticationError, UnavailableError."""
    header = request.headers.get("authorization")
    if header is None:
        if services.settings.mode != "development":
            raise AuthenticationError("Send an API key: `Authorization: Bearer sk-…`.", code="missing_api_key")
        caller = Caller(DEVELOPMENT_TENANT, admin=True)
    else:
        caller = await _in_time(partial(_of_key, services, header))
    request.state.tenant = caller.tenant
    return caller


async def _in_time(look_up: Callable[[], Caller]) -> Caller:
    """Looks up in a thread; one that hangs on a connection that is dead is left to itself."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    except TimeoutError:
        raise UnavailableError("Your API key could not be looked up in time. Try again.", retry_after=5) from None


def _of_key(services: ServicesDep, header: str) -> Caller:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationError("Send the API key as `Authorization: Bearer sk-…`.")
    with services.sessions.begin() as session:
        row = find_key(session, key.strip())
        if row is None:
            raise AuthenticationError("This API key is unknown or revoked.")
        return Caller(row.tenant, admin=row.scope == "admin")


CallerDep = Annotated[Caller, Depends(authenticate)]


def require_admin(caller: CallerDep) -> Caller:
    """The caller, who may manage keys. Raises PermissionDeniedError."""
    if not caller.admin:
        raise PermissionDeniedError("Only keys of scope `admin` may manage keys.")
    return caller


AdminDep = Annotated[Caller, Depends(require_admin)]
