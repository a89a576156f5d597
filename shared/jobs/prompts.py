"""The tenants' prompts: versions of names, of which none is ever changed."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from shared.errors import NotFoundError
from shared.ids import new_id
from shared.jobs.models import Prompt as Row
from shared.prompts import NewPrompt, Prompt, PromptTemplate

#: How the ids of prompts begin.
PROMPT = "prompt-"


def add_prompt(session: Session, tenant: str, new: NewPrompt) -> Prompt:
    """Stores the next version of a name."""
    # One at a time for each name, or two would get the same number.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"prompts/{tenant}/{new.name}", 0))))
    last = session.scalar(select(func.max(Row.version)).where(Row.tenant == tenant, Row.name == new.name))
    row = Row(
        id=new_id("prompt"), tenant=tenant, name=new.name, version=(last or 0) + 1,
        prompt=new.prompt.model_dump(mode="json"), metadata_=new.metadata,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    return _entry(row)


def list_prompts(
    session: Session,
    tenant: str,
    *,
    name: str | None = None,
    language: str | None = None,
    newest: bool = False,
    limit: int,
    after: str | None = None,
) -> list[Prompt]:
    """The tenant's prompts, newest first; `newest`: of each name its highest version alone."""
    query = select(Row).where(Row.tenant == tenant).order_by(Row.id.desc()).limit(limit)
    if name is not None:
        query = query.where(Row.name == name)
    if language is not None:
        query = query.where(Row.prompt["language"].as_string() == language)
    if newest:
        other = aliased(Row)
        later = select(other.id).where(
            other.tenant == Row.tenant, other.name == Row.name, other.version > Row.version
        )  # fmt: skip
        query = query.where(~later.exists())
    if after is not None:
        query = query.where(Row.id < after)
    return [_entry(row) for row in session.scalars(query)]


def find_prompt(session: Session, tenant: str, id: str, *, param: str | None = None) -> Prompt:
    """Raises NotFoundError (`prompt_not_found`)."""
    return _entry(_find(session, tenant, id, param=param))


def delete_prompt(session: Session, tenant: str, id: str) -> None:
    """Deletes one version; jobs that were given it keep what it said. Raises NotFoundError (`prompt_not_found`)."""
    session.delete(_find(session, tenant, id))


def _find(session: Session, tenant: str, id: str, *, param: str | None = None) -> Row:
    row = session.scalar(select(Row).where(Row.id == id, Row.tenant == tenant))
    if row is None:
        raise NotFoundError(f"There is no prompt {id!r}.", code="prompt_not_found", param=param)
    return row


def _entry(row: Row) -> Prompt:
    return Prompt(
        id=row.id,
        name=row.name,
        version=row.version,
        created_at=int(row.created_at.timestamp()),
        prompt=PromptTemplate.model_validate(row.prompt),
        metadata=row.metadata_,
    )
