"""The job engine against a real Postgres: a state machine of claims, deaths, zombies, retries and cancellations.

After every step the invariants of the design hold; at the end everything is finished and nothing was lost or doubled.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sqlalchemy import func, select, update

from shared.db import Sessions
from shared.errors import LeaseLostError
from shared.ids import new_id
from shared.jobs import engine
from shared.jobs.layout import lay_out
from shared.jobs.models import Event, ItemError, Job, Shard
from shared.jobs.records import Finished, ItemFailure, Lease, Plan, Slice, StoredObject
from shared.jobs.retry import retry
from shared.jobs.states import ENDED_JOBS, ShardState
from shared.queues import Modality, Queue, Stage
from shared.schemas import JobStatus
from shared.testing.oracle import unended, wrong_counters

SLICE_ITEMS = 4
QUEUES = [Queue.TEXT, Queue.IMAGE, Queue.AUDIO, Queue.FUSION]


def stored(name: str) -> StoredObject:
    """An object's facts, as if it had been written."""
    return StoredObject(f"{name}-{uuid4().hex}", "0" * 64, 1)


def make_job(
    sessions: Sessions, *, slices: int = 2, tenant: str = "t", fitted: tuple[str, ...] = (), modalities: str = "tia"
) -> str:
    """A planned job with `slices` slices of four items that have the modalities named by their initials."""
    chosen = [m for m in Modality if m.value[0] in modalities]
    schema = {
        "shard_size": SLICE_ITEMS,
        "encoders": {m.value: {"id": f"{m.value}-encoder", "dimension": 2} for m in chosen},
        "fitted": list(fitted),
    }
    parts = [Slice(k, stored("slice"), SLICE_ITEMS, dict.fromkeys(chosen, SLICE_ITEMS)) for k in range(slices)]
    with sessions.begin() as session:
        job = Job(id=new_id("job"), tenant=tenant, type="features", request={}, request_sha256="")
        session.add(job)
        session.flush()
        session.refresh(job)
        lay_out(session, job, Plan(parts, schema, slices * SLICE_ITEMS))
        return job.id


def claim(sessions: Sessions, queue: Queue, *, limit: int = 1, loaded: tuple[str, ...] = ()) -> list[Lease]:
    """Claims and commits."""
    with sessions.begin() as session:
        return engine.claim(session, queue, "worker", limit=limit, loaded=loaded)


def start(sessions: Sessions, lease: Lease) -> None:
    """Starts and commits."""
    with sessions.begin() as session:
        engine.start(session, lease)


def result_of(lease: Lease) -> Finished:
    """What a worker would say of a shard that went well."""
    succeeded = lease.items if lease.stage is Stage.FUSION else 0
    return Finished(lease, stored(lease.stage), items_done=lease.items, rows=lease.items, succeeded=succeeded)


def finish(sessions: Sessions, lease: Lease) -> bool:
    """Finishes and commits; whether it counted."""
    with sessions.begin() as session:
        return bool(engine.finish(session, [result_of(lease)]))


def kill(sessions: Sessions, lease: Lease, *, at_item: int | None = None) -> None:
    """The worker of a lease dies (while trying an item), and the sweep notices."""
    with sessions.begin() as session:
        if at_item is not None:
            engine.probe(session, lease, at_item)
        engine.abandon(session, [(lease.shard_id, lease.token)])
    sweep(sessions)


def sweep(sessions: Sessions) -> int:
    """One sweep of expired leases."""
    with sessions.begin() as session:
        return engine.reclaim_expired(session)


def pass_deadline(sessions: Sessions, id: str) -> bool:
    """The job's deadline passes, and the sweep notices; whether it ended the job."""
    with sessions.begin() as session:
        ago = func.clock_timestamp() - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == id).values(deadline_at=ago))
    with sessions.begin() as session:
        return engine.end_overdue(session)


def retry_job(sessions: Sessions, id: str, timeout_seconds: int | None = None) -> None:
    """Retries and commits."""
    with sessions.begin() as session:
        retry(session, session.get_one(Job, id, with_for_update=True), timeout_seconds)


def run_dry(sessions: Sessions, *queues: Queue) -> list[Lease]:
    """Works everything off; returns what was run."""
    done = []
    while leases := [lease for queue in queues or QUEUES for lease in claim(sessions, queue, limit=8)]:
        for lease in leases:
            start(sessions, lease)
            assert finish(sessions, lease)
        done += leases
    return done


def get_job(sessions: Sessions, id: str) -> Job:
    """The job's row."""
    with sessions() as session:
        return session.get_one(Job, id)


def shard_of(sessions: Sessions, lease: Lease) -> Shard:
    """The shard's row."""
    with sessions() as session:
        return session.get_one(Shard, lease.shard_id)


@pytest.fixture(autouse=True)
def _clean(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RESTART_GRACE", timedelta(0))
    monkeypatch.setattr(engine, "backoff_seconds", lambda _: 0.0)
    empty(sessions)


def empty(sessions: Sessions) -> None:
    """No jobs."""
    with sessions.begin() as session:
        session.execute(Job.__table__.delete())


class EngineMachine(RuleBasedStateMachine):
    """Workers that live, die, freeze and thaw at random."""

    sessions: Sessions
    held = Bundle("held")
    zombies = Bundle("zombies")

    @initialize(slices=st.integers(1, 3), fitted=st.booleans(), modalities=st.sampled_from(["t", "ti", "tia"]))
    def submit(self, slices: int, fitted: bool, modalities: str) -> None:
        empty(self.sessions)
        self.jobs = [
            make_job(self.sessions, slices=slices, fitted=("text",) if fitted else (), modalities=modalities),
            make_job(self.sessions, slices=1, tenant="u", modalities="t"),
        ]
        self.cancelled: set[str] = set()
        self.overdue: set[str] = set()

    @rule(target=held, queue=st.sampled_from(QUEUES), limit=st.integers(1, 3), begin=st.booleans())
    def claim(self, queue: Queue, limit: int, begin: bool) -> object:
        leases = claim(self.sessions, queue, limit=limit)
        for lease in leases:
            if begin:
                start(self.sessions, lease)
        return multiple(*leases)

    @rule(lease=consumes(held))
    def finish(self, lease: Lease) -> None:
        assert finish(self.sessions, lease)
        assert not finish(self.sessions, lease)

    @rule(lease=consumes(held), by_keeper=st.booleans())
    def hand_back(self, lease: Lease, by_keeper: bool) -> None:
        with self.sessions.begin() as session:
            if by_keeper:
                engine.hand_back(session, [(lease.shard_id, lease.token)])
            else:
                engine.release(session, lease)

    @rule(lease=consumes(held))
    def fail_once(self, lease: Lease) -> None:
        with self.sessions.begin() as session:
            engine.fail(session, lease, "attempt_failed", "no luck", max_attempts=1000)

    @rule(target=zombies, lease=consumes(held), item=st.none() | st.integers(0, 3))
    def die(self, lease: Lease, item: int | None) -> Lease:
        kill(self.sessions, lease, at_item=item if lease.isolated else None)
        return lease

    @rule(lease=zombies)
    def thaw(self, lease: Lease) -> None:
        before = shard_of(self.sessions, lease)
        assert not finish(self.sessions, lease)
        with self.sessions.begin() as session:
            engine.fail(session, lease, "zombie", "late")
            engine.fail_job(session, lease, "zombie", "late")
            engine.release(session, lease)
            engine.hand_back(session, [(lease.shard_id, lease.token)])
            assert engine.renew(session, [(lease.shard_id, lease.token)]).kept == frozenset()
            with pytest.raises(LeaseLostError):
                engine.probe(session, lease, 0)
        after = shard_of(self.sessions, lease)
        assert (before.state, before.lease_token, before.attempts) == (after.state, after.lease_token, after.attempts)

    @rule(pick=st.integers(0, 1))
    def cancel(self, pick: int) -> None:
        with self.sessions.begin() as session:
            job = session.get_one(Job, self.jobs[pick], with_for_update=True)
            if job.status not in ENDED_JOBS:
                self.cancelled.add(job.id)
            engine.cancel(session, job)

    @rule(pick=st.integers(0, 1))
    def pass_deadline(self, pick: int) -> None:
        before = get_job(self.sessions, self.jobs[pick]).status
        ended = pass_deadline(self.sessions, self.jobs[pick])
        assert ended == (before not in {*ENDED_JOBS, JobStatus.CANCELLING})
        if ended:
            self.overdue.add(self.jobs[pick])

    @invariant()
    def counters_equal_rows(self) -> None:
        assert wrong_counters(self.sessions) == []

    def teardown(self) -> None:
        """Every lease still out dies; then the rest is worked off, and every job has ended as it should."""
        if not hasattr(self, "jobs"):
            return
        with self.sessions.begin() as session:
            session.execute(
                update(Shard).where(Shard.state == ShardState.LEASED).values(lease_expires_at=func.clock_timestamp())
            )
        sweep(self.sessions)
        run_dry(self.sessions)
        assert wrong_counters(self.sessions) == unended(self.sessions) == []
        for id in self.overdue:
            assert get_job(self.sessions, id).error_code == "deadline_exceeded"
            retry_job(self.sessions, id)
        run_dry(self.sessions)
        assert wrong_counters(self.sessions) == unended(self.sessions) == []
        for id in self.jobs:
            expected = JobStatus.CANCELLED if id in self.cancelled else JobStatus.SUCCEEDED
            assert get_job(self.sessions, id).status == expected


def test_state_machine(sessions: Sessions) -> None:
    """Random histories keep the invariants and end well."""
    machine = type("Machine", (EngineMachine,), {"sessions": sessions})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=40, stateful_step_count=25, deadline=None, derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip


def test_fusion_starts_as_soon_as_its_slice_is_extracted(sessions: Sessions) -> None:
    """No barrier across the job: slice 0 can be fused while slice 1 has not been touched."""
    make_job(sessions, slices=2)
    for queue in (Queue.TEXT, Queue.IMAGE, Queue.AUDIO):
        assert not claim(sessions, Queue.FUSION)
        (lease,) = claim(sessions, queue)
        assert lease.index == 0
        start(sessions, lease)
        finish(sessions, lease)
    (fusion,) = claim(sessions, Queue.FUSION)
    assert fusion.index == 0


def test_fit_is_the_only_barrier(sessions: Sessions) -> None:
    """With an encoder to fit, text waits for the fit of the whole job; images do not."""
    id = make_job(sessions, slices=2, fitted=("text",), modalities="ti")
    (fit,) = claim(sessions, Queue.TEXT, limit=5)
    assert fit.stage is Stage.FIT
    assert len(claim(sessions, Queue.IMAGE, limit=5)) == 2
    start(sessions, fit)
    finish(sessions, fit)
    assert [lease.stage for lease in claim(sessions, Queue.TEXT, limit=5)] == [Stage.TEXT, Stage.TEXT]
    assert get_job(sessions, id).status == JobStatus.RUNNING


def test_attempts_are_counted_and_spent(sessions: Sessions) -> None:
    """Four failures end a shard; fusion goes on without it."""
    id = make_job(sessions, slices=1, modalities="t")
    for attempt in range(4):
        (lease,) = claim(sessions, Queue.TEXT)
        start(sessions, lease)
        with sessions.begin() as session:
            engine.fail(session, lease, "attempt_failed", f"attempt {attempt}")
    assert shard_of(sessions, lease).state == ShardState.FAILED
    assert [lease.stage for lease in run_dry(sessions)] == [Stage.FUSION]
    assert get_job(sessions, id).status == JobStatus.SUCCEEDED


def test_a_beginning_that_is_told_twice_is_one_attempt(sessions: Sessions) -> None:
    """The answer to the first commit was lost with its connection."""
    make_job(sessions, slices=1, modalities="t")
    [lease] = claim(sessions, Queue.TEXT)
    start(sessions, lease)
    start(sessions, lease)
    assert shard_of(sessions, lease).attempts == 1


def test_claiming_or_handing_back_spends_no_attempt(sessions: Sessions) -> None:
    """An outage may hand a shard back for ever, and so may workers that leave; nobody has died."""
    make_job(sessions, slices=1, modalities="t")
    for _ in range(5):
        for give in (engine.release, lambda session, lease: engine.hand_back(session, [(lease.shard_id, lease.token)])):
            (lease,) = claim(sessions, Queue.TEXT)
            start(sessions, lease)
            with sessions.begin() as session:
                give(session, lease)
    shard = shard_of(sessions, lease)
    assert (shard.attempts, shard.isolated, shard.early_deaths) == (0, False, 0)


def test_poison_is_isolated_item_by_item(sessions: Sessions) -> None:
    """A shard with two poisonous items ends, each given up after two deaths, and no attempt is spent on them."""
    make_job(sessions, slices=1, modalities="t")
    (lease,) = claim(sessions, Queue.TEXT)
    start(sessions, lease)
    kill(sessions, lease)
    poison = {1, 3}
    for _ in range(10):
        (lease,) = claim(sessions, Queue.TEXT)
        assert lease.isolated
        start(sessions, lease)
        left = sorted(poison - lease.condemned)
        if not left:
            break
        kill(sessions, lease, at_item=left[0])
    assert lease.condemned == poison
    assert shard_of(sessions, lease).attempts == 2
    assert finish(sessions, lease)


def test_a_death_after_the_last_item_is_no_items_doing(sessions: Sessions) -> None:
    """An isolated shard whose worker dies while it stores: no item gets a strike, and no attempt is spent."""
    make_job(sessions, slices=1, modalities="t")
    (lease,) = claim(sessions, Queue.TEXT)
    start(sessions, lease)
    kill(sessions, lease)
    (lease,) = claim(sessions, Queue.TEXT)
    start(sessions, lease)
    with sessions.begin() as session:
        engine.probe(session, lease, 3)
        engine.probe(session, lease, None)
    kill(sessions, lease)
    shard = shard_of(sessions, lease)
    assert (shard.state, shard.strikes, shard.attempts) == (ShardState.READY, {}, 1)


def test_a_shard_outlives_ten_workers(sessions: Sessions) -> None:
    """Fusion has no items to blame: that its workers die spends no attempts, but not for ever."""
    make_job(sessions, slices=1, modalities="t")
    run_dry(sessions, Queue.TEXT)
    for death in range(engine.MAX_DEATHS + 2):
        (lease,) = claim(sessions, Queue.FUSION)
        assert (shard_of(sessions, lease).attempts, lease.isolated) == (min(death, 1), death > 0)
        start(sessions, lease)
        kill(sessions, lease)
    assert shard_of(sessions, lease).error_code == "worker_died"


def test_a_large_tenant_does_not_hold_up_a_small_one(sessions: Sessions) -> None:
    """Start-time fair queueing: ten items submitted after fifty shards are among the next to be claimed."""
    make_job(sessions, slices=50, tenant="large", modalities="t")
    claim(sessions, Queue.TEXT, limit=5)
    small = make_job(sessions, slices=1, tenant="small", modalities="t")
    assert small in {lease.job_id for lease in claim(sessions, Queue.TEXT, limit=2)}


def test_priority_goes_before_fairness(sessions: Sessions) -> None:
    """A job of higher priority is claimed first."""
    make_job(sessions, slices=3, modalities="t")
    urgent = make_job(sessions, slices=1, modalities="t")
    with sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id == urgent).values(priority=5))
    assert claim(sessions, Queue.TEXT)[0].job_id == urgent


def test_loaded_models_are_preferred_until_something_starves(sessions: Sessions) -> None:
    """What the loaded model can do goes first, but not past ten seconds."""
    first = make_job(sessions, slices=1, modalities="t")
    second = make_job(sessions, slices=1, tenant="u", modalities="t")
    with sessions.begin() as session:
        session.execute(update(Shard).where(Shard.job_id == second).values(affinity="loaded"))
    (lease,) = claim(sessions, Queue.TEXT, loaded=("loaded",))
    assert lease.job_id == second
    with sessions.begin() as session:
        engine.release(session, lease)
        old = func.clock_timestamp() - timedelta(seconds=11)
        session.execute(update(Shard).where(Shard.job_id == first).values(ready_at=old))
    assert claim(sessions, Queue.TEXT, loaded=("loaded",))[0].job_id == first


def test_a_job_error_ends_the_job_and_what_waits(sessions: Sessions) -> None:
    """An encoder that cannot be loaded fails the job at once."""
    id = make_job(sessions, slices=3)
    (lease,) = claim(sessions, Queue.IMAGE)
    (running,) = claim(sessions, Queue.TEXT)
    start(sessions, lease)
    with sessions.begin() as session:
        engine.fail_job(session, lease, "encoder_unavailable", "no weights")
    job = get_job(sessions, id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "encoder_unavailable")
    with sessions.begin() as session:
        assert engine.renew(session, [(running.shard_id, running.token)]).cancelled == {running.shard_id}
        engine.release(session, running)
    assert get_job(sessions, id).shards_open == 0
    assert not run_dry(sessions)


def test_a_deadline_ends_the_job_like_an_error_of_the_job(sessions: Sessions) -> None:
    """What waits is cancelled, what runs is told to stop; a retry goes on with a fresh deadline."""
    id = make_job(sessions, slices=3, modalities="t")
    done, running = claim(sessions, Queue.TEXT, limit=2)
    start(sessions, done)
    finish(sessions, done)
    assert pass_deadline(sessions, id)
    job = get_job(sessions, id)
    assert (job.status, job.error_code, job.shards_open) == (JobStatus.FAILED, "deadline_exceeded", 1)
    assert not claim(sessions, Queue.TEXT)
    with sessions.begin() as session:
        assert engine.renew(session, [(running.shard_id, running.token)]).cancelled == {running.shard_id}
        engine.release(session, running)
        assert not engine.end_overdue(session)
    retry_job(sessions, id, 3600)
    deadline = get_job(sessions, id).deadline_at
    assert deadline is not None
    assert timedelta(minutes=59) < deadline - datetime.now(UTC) < timedelta(minutes=61)
    with sessions.begin() as session:
        assert not engine.end_overdue(session)
    assert done.shard_id not in {lease.shard_id for lease in run_dry(sessions)}
    assert get_job(sessions, id).status == JobStatus.SUCCEEDED


def test_a_job_that_was_finished_past_its_deadline_succeeds_when_retried(sessions: Sessions) -> None:
    """Its last shard was running and ended before its worker heard of it: there is nothing to do again."""
    id = make_job(sessions, slices=1, modalities="t")
    run_dry(sessions, Queue.TEXT)
    (lease,) = claim(sessions, Queue.FUSION)
    start(sessions, lease)
    assert pass_deadline(sessions, id)
    assert finish(sessions, lease)
    assert get_job(sessions, id).status == JobStatus.FAILED
    retry_job(sessions, id)
    assert get_job(sessions, id).status == JobStatus.SUCCEEDED
    assert wrong_counters(sessions) == unended(sessions) == []


def test_a_deadline_and_the_end_at_the_same_moment(sessions: Sessions) -> None:
    """One of them comes first, and the job is what that one made of it."""
    for _ in range(20):
        id = make_job(sessions, slices=1, modalities="t")
        run_dry(sessions, Queue.TEXT)
        (lease,) = claim(sessions, Queue.FUSION)
        start(sessions, lease)
        with ThreadPoolExecutor(2) as threads:
            ended, finished = threads.submit(pass_deadline, sessions, id), threads.submit(finish, sessions, lease)
            assert finished.result()
        job = get_job(sessions, id)
        assert (job.status, job.error_code) == (
            (JobStatus.FAILED, "deadline_exceeded") if ended.result() else (JobStatus.SUCCEEDED, None)
        )
        assert wrong_counters(sessions) == unended(sessions) == []


def test_a_job_fails_when_every_item_failed(sessions: Sessions) -> None:
    """No usable item, no success."""
    id = make_job(sessions, slices=1, modalities="t")
    run_dry(sessions, Queue.TEXT)
    (lease,) = claim(sessions, Queue.FUSION)
    start(sessions, lease)
    failures = [ItemFailure(i, f"item-{i}", None, "no_usable_modality", "none") for i in range(4)]
    with sessions.begin() as session:
        engine.finish(session, [Finished(lease, stored("part"), failures=failures, failed=4)])
        assert session.scalar(select(func.count()).select_from(ItemError)) == 4
    job = get_job(sessions, id)
    assert (job.status, job.error_code, job.items_failed) == (JobStatus.FAILED, "every_item_failed", 4)


def test_nothing_is_taken_back_while_postgres_has_just_started(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of Postgres the living get time to renew."""
    monkeypatch.setattr(engine, "RESTART_GRACE", timedelta(days=1))
    make_job(sessions, slices=1, modalities="t")
    (lease,) = claim(sessions, Queue.TEXT)
    with sessions.begin() as session:
        engine.abandon(session, [(lease.shard_id, lease.token)])
    assert sweep(sessions) == 0
    with sessions.begin() as session:
        assert engine.renew(session, [(lease.shard_id, lease.token)]).kept == {lease.shard_id}


def test_events_tell_the_story_in_order(sessions: Sessions) -> None:
    """Events are numbered in the order in which things happened."""
    id = make_job(sessions, slices=1, modalities="t")
    run_dry(sessions)
    with sessions() as session:
        types = session.scalars(select(Event.type).where(Event.job_id == id).order_by(Event.id)).all()
    assert types == ["job.running", "stage.finished", "stage.finished", "job.succeeded"]
