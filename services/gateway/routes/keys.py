"""API keys: made, listed, revoked, by keys of scope `admin`."""

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Body, Query

from services.gateway import examples
from services.gateway.auth import AdminDep
from services.gateway.deps import After, Limit, ServicesDep
from services.gateway.openapi import COMMON_ERRORS, answers
from services.gateway.paging import page_behind
from shared.jobs import keys
from shared.jobs.models import ApiKey
from shared.schemas import Key, KeyRequest, NewKey, Page

router = APIRouter(tags=["keys"], responses=COMMON_ERRORS)


@router.post(
    "/v1/keys",
    summary="Create a key",
    status_code=201,
    responses=answers(examples.NEW_KEY, 400, 403, 413, status=201, words="The key itself: it is shown only here"),
)
def create_key(
    services: ServicesDep,
    _: AdminDep,
    request: Annotated[KeyRequest, Body(examples=[{"name": "laptop", "tenant": "default", "scope": "user"}])],
) -> NewKey:
    """Makes a key for a tenant; a tenant is made by its first key."""
    with services.sessions.begin() as session:
        row, key = keys.create_key(session, tenant=request.tenant, name=request.name, scope=request.scope)
        return NewKey(**_entry(row).model_dump(), key=key)


@router.get("/v1/keys", summary="List keys", responses=answers(examples.page_of(examples.KEY), 403))
def list_keys(
    services: ServicesDep,
    _: AdminDep,
    limit: Limit = 1000,
    after: After = None,
    tenant: Annotated[str | None, Query(max_length=63)] = None,
) -> Page[Key]:
    """The keys of all tenants, or of one, oldest first; revoked ones too."""
    with services.sessions() as session:
        found = [_entry(row) for row in keys.list_keys(session, tenant)]
    return page_behind(found, limit, after, lambda key: key.id)


@router.delete("/v1/keys/{id}", summary="Revoke a key", responses=answers(examples.KEY, 403, 404))
def revoke_key(id: str, services: ServicesDep, _: AdminDep) -> Key:
    """Makes a key useless from now on; it stays in the list."""
    with services.sessions.begin() as session:
        return _entry(keys.revoke_key(session, id))


def _entry(row: ApiKey) -> Key:
    return Key(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        scope=cast(Literal["user", "admin"], row.scope),
        hint=row.hint,
        created_at=int(row.created_at.timestamp()),
        last_used_at=int(row.last_used_at.timestamp()) if row.last_used_at else None,
        revoked_at=int(row.revoked_at.timestamp()) if row.revoked_at else None,
    )
