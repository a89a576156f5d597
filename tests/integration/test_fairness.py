"""Fairness between tenants: a backlog of a million items does not hold up another's ten."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, text

from shared.db import Sessions
from shared.ids import new_id
from shared.jobs import engine
from shared.jobs.layout import lay_out
from shared.jobs.models import Job, TenantClock
from shared.jobs.records import Finished, Lease, Plan, Slice, StoredObject
from shared.queues import Modality, Queue, Stage

#: A million items in shards of 256.
MILLION = [256] * 3907


def submit(sessions: Sessions, tenant: str, sizes: Sequence[int]) -> str:
    """A planned job of texts with slices of these sizes; its id."""
    schema = {"shard_size": 256, "encoders": {"text": {"id": "text-encoder", "dimension": 2}}, "fitted": []}
    parts = [Slice(i, StoredObject(f"slice-{i}", "0" * 64, 1), n, {Modality.TEXT: n}) for i, n in enumerate(sizes)]
    with sessions.begin() as session:
        job = Job(id=new_id("job"), tenant=tenant, type="features", request={}, request_sha256="")
        session.add(job)
        session.flush()
        session.refresh(job)
        lay_out(session, job, Plan(parts, schema, sum(sizes)))
        return job.id


def claim(sessions: Sessions, queue: Queue = Queue.TEXT) -> Lease:
    """The next shard."""
    with sessions.begin() as session:
        [lease] = engine.claim(session, queue, "worker")
    return lease


def finish(sessions: Sessions, lease: Lease) -> None:
    """Ends a shard."""
    succeeded = lease.items if lease.stage is Stage.FUSION else 0
    stored = StoredObject(f"{lease.stage}-{lease.token}", "0" * 64, 1)
    with sessions.begin() as session:
        engine.start(session, lease)
        assert engine.finish(session, [Finished(lease, stored, items_done=lease.items, succeeded=succeeded)])


def empty(sessions: Sessions) -> None:
    """No jobs, and nothing that tenants have used."""
    with sessions.begin() as session:
        session.execute(delete(Job))
        session.execute(delete(TenantClock))


@pytest.fixture(scope="module")
def backlog(sessions: Sessions) -> str:
    """A tenant's million items, of which some were worked off and some run."""
    empty(sessions)
    id = submit(sessions, "large", MILLION)
    for _ in range(8):
        finish(sessions, claim(sessions))
    for _ in range(4):
        claim(sessions)
    return id


def test_ten_items_are_next_in_every_stage(sessions: Sessions, backlog: str) -> None:
    small = submit(sessions, "small", [10])
    text_shard = claim(sessions)
    assert text_shard.job_id == small
    finish(sessions, text_shard)
    fusion = claim(sessions, Queue.FUSION)
    assert fusion.job_id == small, "eight shards of the large job were ready before it"
    finish(sessions, fusion)
    with sessions() as session:
        assert session.get_one(Job, small).status == "succeeded"


def test_so_are_ten_items_in_several_shards_of_several_tenants(sessions: Sessions, backlog: str) -> None:
    jobs = [submit(sessions, tenant, [4, 3, 3]) for tenant in ("one", "two", "three")]
    claimed = [claim(sessions).job_id for _ in range(9)]
    assert {id: claimed.count(id) for id in jobs} == dict.fromkeys(jobs, 3)
    assert set(claimed[:3]) == set(jobs), "and they take turns"


def test_a_claim_reads_no_more_of_a_long_queue(sessions: Sessions, backlog: str) -> None:
    read = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'shards'")
    with sessions.begin() as session:
        before = session.scalar(read) or 0
        engine.claim(session, Queue.TEXT, "worker")
        assert (session.scalar(read) or 0) - before < 4 * engine.CLAIM_WINDOW


@given(
    one=st.lists(st.integers(1, 256), min_size=2, max_size=12),
    two=st.lists(st.integers(1, 256), min_size=2, max_size=12),
    head_start=st.integers(0, 5),
)
@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_while_two_tenants_wait_they_get_the_same(
    sessions: Sessions, one: list[int], two: list[int], head_start: int
) -> None:
    """The bound of start-time fair queueing: they never differ by more than one shard of each."""
    empty(sessions)
    sizes = {submit(sessions, "one", one): one}
    left = {id: len(sizes[id]) for id in sizes}
    for _ in range(min(head_start, len(one) - 1)):
        left[claim(sessions).job_id] -= 1
    sizes[second := submit(sessions, "two", two)] = two
    left[second] = len(two)
    served = dict.fromkeys(sizes, 0)
    while all(left.values()):
        lease = claim(sessions)
        served[lease.job_id] += lease.items
        left[lease.job_id] -= 1
        most, least = max(served.values()), min(served.values())
        assert most - least <= max(one) + max(two)
