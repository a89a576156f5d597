"""The feature cache: which vector belongs to which content under which encoder. Never across tenants."""

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.jobs.models import CacheEntry, CacheSegment
from shared.jobs.records import CachedVectors


def look_up(
    session: Session, tenant: str, fingerprint: str, contents: Collection[str]
) -> dict[tuple[str, str], dict[str, int]]:
    """Where the vectors of these contents (sha256) are: (segment key, its sha256) → {content: row}.

    Marks the segments as used, so that the least recently used go first.
    """
    if not contents:
        return {}
    rows = session.execute(
        select(CacheEntry.content_sha256, CacheEntry.segment, CacheEntry.row, CacheSegment.sha256)
        .join(CacheSegment, CacheSegment.key == CacheEntry.segment)
        .where(
            CacheEntry.tenant == tenant,
            CacheEntry.fingerprint == fingerprint,
            CacheEntry.content_sha256.in_(contents),
        )
    ).all()
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for content, segment, row, sha256 in rows:
        found[segment, sha256][content] = row
    if found:
        session.execute(
            update(CacheSegment)
            .where(CacheSegment.key.in_([key for key, _ in found]))
            .values(used_at=func.clock_timestamp())
        )
    return dict(found)


def remember(session: Session, tenant: str, cached: CachedVectors) -> None:
    """Adds a segment and its entries; contents that another shard remembered first stay where they are."""
    segment = cached.segment
    session.execute(
        upsert(CacheSegment)
        .values(key=segment.key, tenant=tenant, sha256=segment.sha256, bytes=segment.bytes)
        .on_conflict_do_nothing()
    )
    rows = [
        {
            "tenant": tenant,
            "fingerprint": cached.fingerprint,
            "content_sha256": content,
            "segment": segment.key,
            "row": i,
        }
        for i, content in enumerate(cached.content_sha256)
    ]
    # In the order of the key, so that two shards with contents in common cannot deadlock.
    rows.sort(key=lambda row: str(row["content_sha256"]))
    session.execute(upsert(CacheEntry).on_conflict_do_nothing(), rows)
