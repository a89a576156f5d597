"""Uploaded files and their bytes: a file is a tenant's name for a blob, and a blob goes with its last file.

Lock order: the blob's row, then its files. Each upload has an object of its own, so an object that no blob names (an
upload of known content, a file just deleted) can be deleted by whoever meets it, whatever is uploaded meanwhile.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared import schemas
from shared.errors import ConflictError, NotFoundError
from shared.ids import new_id
from shared.items import MediaLocation
from shared.jobs.models import Batch, Blob, File, Job, JobFile
from shared.jobs.records import StoredObject
from shared.jobs.states import ENDED_JOBS


def add_file(
    session: Session, *, tenant: str, stored: StoredObject, content_type: str, filename: str, purpose: str
) -> tuple[schemas.File, str]:
    """A file for uploaded bytes. Returns it and the key of its blob: another than `stored.key` if the tenant had the
    content already, so that the upload's own object is to be deleted after the commit."""
    blob = session.scalars(
        upsert(Blob)
        .values(tenant=tenant, sha256=stored.sha256, key=stored.key, bytes=stored.bytes, content_type=content_type)
        # An update that changes nothing: unlike "do nothing" it locks the row that is there and returns it.
        .on_conflict_do_update(index_elements=[Blob.tenant, Blob.sha256], set_={"bytes": stored.bytes})
        .returning(Blob)
    ).one()
    file = File(id=new_id("file"), tenant=tenant, sha256=stored.sha256, filename=filename, purpose=purpose)
    session.add(file)
    session.flush()
    return _snapshot(file, blob), blob.key


def get_file(session: Session, tenant: str, id: str) -> tuple[schemas.File, str]:
    """A file and the key of its bytes. Raises NotFoundError (`file_not_found`)."""
    row = session.execute(_files(tenant).where(File.id == id)).first()
    if row is None:
        raise file_not_found(id)
    return _snapshot(row.File, row.Blob), row.Blob.key


def list_files(
    session: Session,
    tenant: str,
    *,
    limit: int,
    after: str | None = None,
    purpose: str | None = None,
    oldest_first: bool = False,
) -> list[schemas.File]:
    """Up to `limit` files, newest first unless told otherwise, from behind `after` on."""
    query = _files(tenant).order_by(File.id if oldest_first else File.id.desc()).limit(limit)
    if after is not None:
        query = query.where(File.id > after if oldest_first else File.id < after)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return [_snapshot(row.File, row.Blob) for row in session.execute(query)]


def delete_file(session: Session, tenant: str, id: str) -> str | None:
    """Deletes a file, and its blob's row with the last file of that content.

    Returns the key of the object to delete after the commit, None while other files need it. Raises NotFoundError, or
    ConflictError (`file_in_use`) while a job that has not ended reads it.
    """
    blob = session.scalar(
        select(Blob)
        .join(File, (File.tenant == Blob.tenant) & (File.sha256 == Blob.sha256))
        .where(File.id == id, File.tenant == tenant)
        .with_for_update(of=Blob)
    )
    file = session.scalar(select(File).where(File.id == id, File.tenant == tenant).with_for_update())
    if blob is None or file is None:
        raise file_not_found(id)
    reader = session.scalar(
        select(Job.id).join(JobFile).where(JobFile.file_id == id, Job.status.not_in(ENDED_JOBS)).limit(1)
    ) or session.scalar(select(Batch.id).where(Batch.input_file_id == id, Batch.finalized_at.is_(None)).limit(1))
    if reader is not None:
        message = f"The file {id!r} is read by {reader!r}; cancel that job or wait for its end."
        raise ConflictError(message, code="file_in_use")
    session.delete(file)
    session.flush()
    others = session.scalar(select(File.id).where(File.tenant == tenant, File.sha256 == blob.sha256).limit(1))
    if others is not None:
        return None
    session.delete(blob)
    return blob.key


def locate_files(session: Session, tenant: str, ids: Collection[str]) -> dict[str, MediaLocation]:
    """Where the bytes of the tenant's files are; ids that are unknown (or another tenant's) are left out."""
    if not ids:
        return {}
    rows = session.execute(_files(tenant).where(File.id.in_(ids)))
    return {
        row.File.id: MediaLocation(key=row.Blob.key, size=row.Blob.bytes, sha256=row.Blob.sha256, ref=row.File.id)
        for row in rows
    }


def total_bytes(session: Session, tenant: str, ids: Collection[str]) -> int:
    """Bytes of those of the files that exist, together."""
    if not ids:
        return 0
    sizes = _files(tenant).where(File.id.in_(ids)).with_only_columns(func.sum(Blob.bytes))
    return int(session.scalar(sizes) or 0)


def pin_files(session: Session, tenant: str, ids: Collection[str]) -> Sequence[str]:
    """Those of the files that exist, locked against deletion until the transaction that gives them a job commits."""
    if not ids:
        return []
    wanted = select(File.id).where(File.tenant == tenant, File.id.in_(ids)).order_by(File.id)
    return session.scalars(wanted.with_for_update(read=True)).all()


def file_not_found(id: str, param: str | None = None) -> NotFoundError:
    """The error for a file that is not there, or is another tenant's."""
    return NotFoundError(f"There is no file {id!r}.", code="file_not_found", param=param)


def _files(tenant: str) -> Select[File, Blob]:
    return (
        select(File, Blob)
        .join(Blob, (File.tenant == Blob.tenant) & (File.sha256 == Blob.sha256))
        .where(File.tenant == tenant)
    )


def _snapshot(file: File, blob: Blob) -> schemas.File:
    return schemas.File(
        id=file.id,
        bytes=blob.bytes,
        created_at=int(file.created_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
        content_type=blob.content_type,
        sha256=file.sha256,
    )
