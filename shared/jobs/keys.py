"""API keys: shown once, kept as hashes. A key belongs to a tenant; `admin` keys may also manage keys."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.errors import NotFoundError
from shared.ids import new_id
from shared.jobs.models import ApiKey

PREFIX = "sk-trivium-"


def _sha256(key: str) -> str:
    # A fast hash is right here: the keys are 256 random bits, not passwords that could be guessed.
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(session: Session, *, tenant: str, name: str, scope: str = "user") -> tuple[ApiKey, str]:
    """A new key: its row, and the key itself, which cannot be had again."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        id=new_id("key"), tenant=tenant, name=name, scope=scope, key_sha256=_sha256(key), hint=key[-4:],
        created_at=datetime.now(UTC),
    )  # fmt: skip
    session.add(row)
    return row, key


def ensure_key(session: Session, key: str, *, tenant: str, name: str, scope: str) -> None:
    """Registers a key that was made elsewhere, unless it is registered already."""
    session.execute(
        upsert(ApiKey)
        .values(
            id=new_id("key"), tenant=tenant, name=name, scope=scope, key_sha256=_sha256(key), hint=key[-4:]
        )
        .on_conflict_do_nothing()
    )  # fmt: skip


def find_key(session: Session, key: str) -> ApiKey | None:
    """The row of a valid key, or None. Notes its use, once a minute at most."""
    row = session.scalar(select(ApiKey).where(ApiKey.key_sha256 == _sha256(key), ApiKey.revoked_at.is_(None)))
    if row is not None and (row.last_used_at is None or datetime.now(UTC) - row.last_used_at > timedelta(minutes=1)):
        row.last_used_at = func.clock_timestamp()
    return row


def list_keys(session: Session, tenant: str | None = None) -> Sequence[ApiKey]:
    """The keys, of one tenant or of all, oldest first; revoked ones too."""
    query = select(ApiKey).order_by(ApiKey.id)
    return session.scalars(query if tenant is None else query.where(ApiKey.tenant == tenant)).all()


def revoke_key(session: Session, id: str) -> ApiKey:
    """Makes a key useless from now on. Raises NotFoundError."""
    row = session.get(ApiKey, id, with_for_update=True)
    if row is None:
        raise NotFoundError(f"There is no API key {id!r}.", code="key_not_found")
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
    return row
