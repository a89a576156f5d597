"""Objects that no row names: of attempts that lost, of uploads that broke off, of a process that died in between.

Why nothing is deleted that is needed. A page of objects is listed first; of those older than `orphan_seconds`, rows are
read *after* the listing, and only what no row names then is deleted. Could a row come to name such an object later?
- The object of a shard carries in its key the token of the lease under which it was written. Only the holder of that
  lease can commit a row that names it, it has held it without a break since before it wrote, and the lease is a row
  itself, which is among those read. So what no row names, and no lease may name, nobody can name any more.
- Uploads, cached vectors and the slices that the gateway plans are named within moments of being written, in the same
  request; each has a key that is never used twice. `orphan_seconds` is the time such a request may take at the most.
Two at once: both delete the same objects, which is no error.
"""

import re
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.dispatcher.steps.context import SweepContext
from shared.jobs.models import Blob, CacheSegment, Job, Model, Shard
from shared.jobs.states import ShardState
from shared.queues import Stage
from shared.storage import keys
from shared.storage.objects import ListedObject

#: Objects looked at in one sweep: this bounds what the search costs storage and database.
PAGE = 1000

#: A search that came to its end starts again after this.
PAUSE = timedelta(hours=1)

_TOKEN = re.compile(r"[0-9a-f]{32}")


class OrphanSearch:
    """Walks through the bucket, a page at a time, once an hour. Where it is, it keeps in memory."""

    def __init__(self) -> None:
        self._prefixes: list[str] = []
        self._after: str | None = None
        self._due: datetime | None = None

    def __call__(self, context: SweepContext, now: datetime) -> int:
        """Deletes the orphans of the next page. Returns how many they were."""
        if not self._prefixes:
            if self._due is not None and now < self._due:
                return 0
            self._prefixes, self._due = list(_NAMED), now + PAUSE
        prefix = self._prefixes[0]
        page = list(islice(context.store.list(prefix, start_after=self._after), PAGE))
        orphans = _orphans(context, prefix, page, now)
        context.store.delete(orphans)
        self._after = page[-1].key if len(page) == PAGE else None
        if self._after is None:
            self._prefixes.pop(0)
        return len(orphans)


def _orphans(context: SweepContext, prefix: str, page: list[ListedObject], now: datetime) -> list[str]:
    youngest = now - timedelta(seconds=context.settings.engine.orphan_seconds)
    old = [found.key for found in page if found.modified_at is not None and found.modified_at < youngest]
    if not old:
        return []
    with context.sessions() as session:
        # Leases before rows: a shard that ends in between is then seen as leased, not as neither.
        leased = _leased(session, old)
        named = _NAMED[prefix](session, old)
    return [key for key in old if key not in named and not leased & _tokens(key)]


def _leased(session: Session, found: Collection[str]) -> set[str]:
    tokens = {UUID(token) for key in found for token in _tokens(key)}
    held = select(Shard.lease_token).where(Shard.state == ShardState.LEASED, Shard.lease_token.in_(tokens))
    return {token.hex for token in session.scalars(held) if token is not None}


def _tokens(key: str) -> set[str]:
    """The lease token in a key; objects that belong to a job as such have none."""
    return set(_TOKEN.findall(key))


def _named_by_jobs(session: Session, found: Collection[str]) -> set[str]:
    """Results of shards, what the job's plan wrote, and what lives as long as the job."""
    job_of = {key: key.split("/")[1] for key in found}
    jobs = session.execute(select(Job.id, Job.schema["plan"].as_string()).where(Job.id.in_(job_of.values())))
    plans = {id: {plan} if plan else set() for id, plan in jobs}
    results = set(session.scalars(select(Shard.result_key).where(Shard.job_id.in_(plans), Shard.result_key.in_(found))))
    training = select(Shard.checkpoints).where(Shard.job_id.in_(plans), Shard.stage.in_([Stage.FIT, Stage.FINE_TUNE]))
    results |= {saved["key"] for checkpoints in session.scalars(training) for saved in checkpoints.values()}
    return {key for key, id in job_of.items() if id in plans and (key in results or _tokens(key) <= plans[id])}


def _named_by_models(session: Session, found: Collection[str]) -> set[str]:
    """A model is a folder of files, some in folders of their own; its row names one of them."""
    ids = {key.split("/")[1] for key in found}
    folders = {_folder(key) for key in session.scalars(select(Model.key).where(Model.id.in_(ids)))}
    return {key for key in found if _folder(key) in folders}


def _folder(key: str) -> tuple[str, ...]:
    """Which attempt at which model wrote it."""
    return tuple(key.split("/")[1:3])


def _named_by_files(session: Session, found: Collection[str]) -> set[str]:
    return set(session.scalars(select(Blob.key).where(Blob.key.in_(found))))


def _named_by_cache(session: Session, found: Collection[str]) -> set[str]:
    return set(session.scalars(select(CacheSegment.key).where(CacheSegment.key.in_(found))))


#: How to tell which objects of a folder are named by a row.
_NAMED: dict[str, Callable[[Session, Collection[str]], set[str]]] = {
    keys.JOBS: _named_by_jobs,
    keys.BLOBS: _named_by_files,
    keys.CACHE: _named_by_cache,
    keys.MODELS: _named_by_models,
}
