"""fine_tune and predict jobs in the engine: what waits for what, what ends them, and what they keep from deletion."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.db import Sessions
from shared.errors import ConflictError, LeaseLostError, NotFoundError
from shared.ids import new_id
from shared.jobs import engine, registry, repository
from shared.jobs.layout import lay_out, lay_out_on_features
from shared.jobs.models import Job, Shard
from shared.jobs.records import Finished, ItemFailure, Lease, NewModel, Plan, Slice, StoredObject
from shared.jobs.retry import retry
from shared.jobs.states import ShardState
from shared.queues import Modality, Queue, Stage
from shared.schemas import JobStatus
from shared.testing.oracle import wrong_counters

SLICES, ITEMS = 3, 4


def stored(name: str) -> StoredObject:
    """An object's facts, as if it had been written."""
    return StoredObject(name, hashlib.sha256(name.encode()).hexdigest(), 1)


def make_job(sessions: Sessions, request: dict[str, Any], *, unplanned: int = 0) -> str:
    """A planned job of three slices with texts; so many items more could not be planned."""
    schema = {
        "shard_size": ITEMS, "encoders": {"text": {"id": "hash-text", "dimension": 2}}, "fitted": [],
        "dimensions": {"text": 2, "fused": 0}, "fusion": {"method": "none"},
    }  # fmt: skip
    parts = [Slice(k, stored(f"slice-{k}"), ITEMS, {Modality.TEXT: ITEMS}) for k in range(SLICES)]
    with sessions.begin() as session:
        job = _new_job(sessions, request)
        session.add(job)
        session.flush()
        session.refresh(job)
        bad = [ItemFailure(100 + i, f"line-{i}", None, "invalid_json", "") for i in range(unplanned)]
        lay_out(session, job, Plan(parts, schema, SLICES * ITEMS + unplanned, bad, unplanned))
        return job.id


def make_job_on(sessions: Sessions, features: str, request: dict[str, Any]) -> str:
    """A job on the feature set of another."""
    new = repository.NewJob(
        id=new_id("job"), tenant="t", request={"priority": 0, "metadata": {}, "features": features, **request},
        request_sha256="", features=features, model=request.get("model"),
    )  # fmt: skip
    with sessions.begin() as session:
        job = repository.create(session, new)
        assert job is not None
        session.refresh(job)
        lay_out_on_features(session, job, repository.find_features(session, "t", features))
        return job.id


def _new_job(sessions: Sessions, request: dict[str, Any]) -> Job:
    whole = {"max_failed_fraction": 0.1, **request}
    return Job(id=new_id("job"), tenant="t", type=request["type"], request=whole, request_sha256="")


def claim(sessions: Sessions, queue: Queue) -> list[Lease]:
    """Claims and starts everything that is ready."""
    with sessions.begin() as session:
        leases = engine.claim(session, queue, "worker", limit=100)
        for lease in leases:
            engine.start(session, lease)
    return leases


def finish(sessions: Sessions, lease: Lease, **facts: Any) -> None:
    """Ends a shard well."""
    if lease.stage is Stage.FUSION:
        facts = {"succeeded": lease.items, "rows": lease.items, **facts}
    result = stored(f"{lease.job_id}-{lease.stage}-{lease.index}")
    with sessions.begin() as session:
        assert engine.finish(session, [Finished(lease, result, items_done=lease.items, **facts)])


def new_model() -> NewModel:
    """What training made."""
    spec = {"files": {"model.safetensors": {"key": "k", "sha256": "0", "bytes": 1}}}
    return NewModel(new_id("model"), "classifier", None, 2, "0", spec)


def fuse_all(sessions: Sessions, **facts: Any) -> None:
    """Runs the extraction and fusion of everything that is ready."""
    for queue in (Queue.TEXT, Queue.FUSION):
        for lease in claim(sessions, queue):
            finish(sessions, lease, **(facts if queue is Queue.FUSION else {}))


def status_of(sessions: Sessions, id: str) -> tuple[str, str | None]:
    """A job's status and why it failed."""
    with sessions() as session:
        job = session.get_one(Job, id)
        return job.status, job.error_code


@pytest.fixture
def features(sessions: Sessions) -> str:
    """A features job that has succeeded."""
    id = make_job(sessions, {"type": "features"})
    fuse_all(sessions)
    return id


def test_training_waits_for_every_slice_and_ends_the_job(sessions: Sessions) -> None:
    """The shard is claimed when the last slice is fused; its model is the job's."""
    id = make_job(sessions, {"type": "fine_tune"})
    for lease in claim(sessions, Queue.TEXT):
        finish(sessions, lease)
    for lease in claim(sessions, Queue.FUSION):
        assert claim(sessions, Queue.FINE_TUNE) == []
        finish(sessions, lease)
    [training] = claim(sessions, Queue.FINE_TUNE)
    assert training.items == SLICES * ITEMS
    model = new_model()
    finish(sessions, training, model=model)
    with sessions() as session:
        shown = repository.snapshots(session, [session.get_one(Job, id)])[0]
    assert (shown.status, shown.models, shown.items.succeeded) == (JobStatus.SUCCEEDED, [model.id], SLICES * ITEMS)
    assert wrong_counters(sessions) == []


def test_too_many_failed_items_stop_a_job_before_training(sessions: Sessions) -> None:
    """More than a tenth failed: the job fails in words, and nothing is trained."""
    id = make_job(sessions, {"type": "fine_tune"})
    for lease in claim(sessions, Queue.TEXT):
        finish(sessions, lease)
    first, *_ = claim(sessions, Queue.FUSION)
    lost = [ItemFailure(i, f"item-{i}", None, "no_usable_modality", "") for i in range(2)]
    finish(sessions, first, succeeded=2, failed=2, rows=2, failures=lost)
    assert status_of(sessions, id) == (JobStatus.FAILED, "too_many_failed_items")
    assert claim(sessions, Queue.FINE_TUNE) == []


def test_prediction_follows_slice_by_slice(sessions: Sessions, features: str) -> None:
    """A slice's prediction is ready as soon as the slice is fused."""
    id = make_job(sessions, {"type": "predict", "model": "model-x"})
    for lease in claim(sessions, Queue.TEXT):
        finish(sessions, lease)
    fusion = claim(sessions, Queue.FUSION)
    finish(sessions, fusion[0])
    [prediction] = claim(sessions, Queue.FUSION)
    assert (prediction.stage, prediction.index) == (Stage.PREDICT, fusion[0].index)
    finish(sessions, prediction, rows=ITEMS)
    for lease in fusion[1:]:
        finish(sessions, lease)
    for lease in claim(sessions, Queue.FUSION):
        finish(sessions, lease, rows=ITEMS)
    assert status_of(sessions, id) == (JobStatus.SUCCEEDED, None)
    assert wrong_counters(sessions) == []


def test_a_feature_set_is_kept_while_a_job_needs_it(sessions: Sessions, features: str) -> None:
    """Neither the features nor the model can be deleted before the end of what reads them."""
    training_job = make_job_on(sessions, features, {"type": "fine_tune"})
    with pytest.raises(ConflictError, match="needs"), sessions.begin() as session:
        repository.delete(session, "t", features)
    [training] = claim(sessions, Queue.FINE_TUNE)
    model = new_model()
    finish(sessions, training, succeeded=training.items, model=model)
    assert status_of(sessions, training_job) == (JobStatus.SUCCEEDED, None)
    predicting = make_job_on(sessions, features, {"type": "predict", "model": model.id})
    for attempt in (
        lambda session: registry.delete_model(session, "t", model.id),
        lambda session: repository.delete(session, "t", training_job),
        lambda session: repository.delete(session, "t", features),
    ):
        with pytest.raises(ConflictError), sessions.begin() as session:
            attempt(session)
    for lease in claim(sessions, Queue.FUSION):
        finish(sessions, lease, rows=lease.items, succeeded=lease.items)
    assert status_of(sessions, predicting) == (JobStatus.SUCCEEDED, None)
    assert wrong_counters(sessions) == []
    with sessions.begin() as session:
        registry.delete_model(session, "t", model.id)
        repository.delete(session, "t", features)
    with pytest.raises(NotFoundError), sessions.begin() as session:
        registry.find_model(session, "t", model.id)


def test_a_job_that_did_not_succeed_is_no_feature_set(sessions: Sessions) -> None:
    """Another tenant's, one that runs, one that never was."""
    running = make_job(sessions, {"type": "features"})
    for tenant, id, error in (
        ("t", running, ConflictError),
        ("u", running, NotFoundError),
        ("t", "job-x", NotFoundError),
    ):
        with pytest.raises(error), sessions() as session:
            repository.find_features(session, tenant, id)
    fuse_all(sessions)


def test_progress_resets_what_counts_against_training(sessions: Sessions, features: str) -> None:
    """A checkpoint is there for the next attempt; a holder that lost its lease cannot write one."""
    make_job_on(sessions, features, {"type": "fine_tune"})
    [first] = claim(sessions, Queue.FINE_TUNE)
    with sessions.begin() as session:
        session.get_one(Shard, first.shard_id).early_deaths = 5
        engine.checkpoint(session, first, "candidate-1", stored("checkpoint"))
        engine.release(session, first)
    [second] = claim(sessions, Queue.FINE_TUNE)
    assert second.checkpoints == {"candidate-1": {"key": "checkpoint", "sha256": stored("checkpoint").sha256}}
    with pytest.raises(LeaseLostError), sessions.begin() as session:
        engine.checkpoint(session, first, "candidate-1", stored("late"))
    with sessions.begin() as session:
        assert session.get_one(Shard, first.shard_id).early_deaths == 0
    finish(sessions, second, succeeded=second.items)


def test_training_that_failed_can_be_tried_again(sessions: Sessions) -> None:
    """Its shard alone, if nothing else failed; with the slices that are tried again, if items failed."""
    id = make_job(sessions, {"type": "fine_tune", "max_failed_fraction": 1.0})
    fuse_all(sessions)
    [training] = claim(sessions, Queue.FINE_TUNE)
    with sessions.begin() as session:
        engine.fail(session, training, "attempt_failed", "no", max_attempts=1)
    assert status_of(sessions, id) == (JobStatus.FAILED, "attempt_failed")
    with sessions.begin() as session:
        retry(session, session.get_one(Job, id, with_for_update=True))
    [again] = claim(sessions, Queue.FINE_TUNE)
    finish(sessions, again, model=new_model())
    assert status_of(sessions, id) == (JobStatus.SUCCEEDED, None)
    with sessions.begin() as session:
        job = session.get_one(Job, id, with_for_update=True)
        shard = session.query(Shard).where(Shard.job_id == id, Shard.stage == "text", Shard.index == 1).one()
        engine.add_item_errors(session, id, [ItemFailure(4, "item-4", Modality.TEXT, "x", "")], shard_index=1)
        assert shard.state == ShardState.DONE
        retry(session, job)
    assert claim(sessions, Queue.FINE_TUNE) == []
    fuse_all(sessions)
    [third] = claim(sessions, Queue.FINE_TUNE)
    finish(sessions, third, model=new_model())
    assert status_of(sessions, id) == (JobStatus.SUCCEEDED, None)
    assert wrong_counters(sessions) == []


def test_items_that_cannot_be_tried_again_do_not_let_a_retry_train(sessions: Sessions) -> None:
    """Broken lines of a manifest were too many; they are still too many."""
    id = make_job(sessions, {"type": "fine_tune"}, unplanned=SLICES * ITEMS)
    texts = claim(sessions, Queue.TEXT)
    for lease in texts:
        finish(sessions, lease)
    fusions = claim(sessions, Queue.FUSION)
    finish(sessions, fusions[0])
    assert status_of(sessions, id) == (JobStatus.FAILED, "too_many_failed_items")
    for lease in fusions[1:]:
        finish(sessions, lease)  # they were under way
    with pytest.raises(ConflictError, match="max_failed_fraction"), sessions.begin() as session:
        retry(session, session.get_one(Job, id, with_for_update=True))
    assert claim(sessions, Queue.FINE_TUNE) == []
    assert status_of(sessions, id) == (JobStatus.FAILED, "too_many_failed_items")


def retry_job(sessions: Sessions, id: str) -> None:
    """As the gateway does it."""
    with sessions.begin() as session:
        retry(session, repository.find(session, "t", id, lock=True))


def fail(sessions: Sessions, lease: Lease) -> None:
    """The last attempt of a shard."""
    with sessions.begin() as session:
        engine.fail(session, lease, "attempt_failed", "no", max_attempts=1)


def test_a_feature_set_does_not_change_under_who_reads_it(sessions: Sessions, features: str) -> None:
    """Its job is not retried while another trains on it, and what failed on it is not retried once it has changed."""
    with sessions.begin() as session:
        lost = [ItemFailure(1, "item-1", Modality.TEXT, "x", "")]
        engine.add_item_errors(session, features, lost, shard_index=0)
    training_job = make_job_on(sessions, features, {"type": "fine_tune"})
    with pytest.raises(ConflictError, match="needs"):
        retry_job(sessions, features)
    [training] = claim(sessions, Queue.FINE_TUNE)
    fail(sessions, training)
    retry_job(sessions, features)
    with pytest.raises(ConflictError, match="running"):
        retry_job(sessions, training_job)
    fuse_all(sessions, succeeded=ITEMS - 1, failed=1, rows=ITEMS - 1)
    with pytest.raises(ConflictError, match="changed"):
        retry_job(sessions, training_job)
    with sessions.begin() as session:
        repository.delete(session, "t", features)
    with pytest.raises(NotFoundError):
        retry_job(sessions, training_job)


@pytest.fixture
def model(sessions: Sessions, features: str) -> tuple[str, str]:
    """A model and the job that made it."""
    maker, made = make_job_on(sessions, features, {"type": "fine_tune"}), new_model()
    [training] = claim(sessions, Queue.FINE_TUNE)
    finish(sessions, training, succeeded=training.items, model=made)
    return made.id, maker


def test_the_model_of_a_deleted_job_cannot_be_used(sessions: Sessions, model: tuple[str, str]) -> None:
    """Not even before the sweep has removed it: it would be gone under the job that uses it."""
    id, maker = model
    with sessions.begin() as session:
        repository.delete(session, "t", maker)
    with sessions() as session:
        assert id not in [entry.id for entry in registry.fitted_models(session, "t")]
        with pytest.raises(NotFoundError):
            registry.find_model(session, "t", id)


def test_a_job_and_the_deletion_of_its_model_at_the_same_moment(
    sessions: Sessions, features: str, model: tuple[str, str]
) -> None:
    """Whoever comes second waits for the first, and is told."""
    id, maker = model
    new = repository.NewJob(
        id=new_id("job"), tenant="t", request_sha256="", features=features, model=id,
        request={"type": "predict", "priority": 0, "metadata": {}, "features": features, "model": id},
    )  # fmt: skip

    def delete() -> None:
        with sessions.begin() as session:
            repository.delete(session, "t", maker)

    with ThreadPoolExecutor(1) as pool, sessions.begin() as session:
        assert repository.create(session, new) is not None
        deletion = pool.submit(delete)
        with pytest.raises(TimeoutError):
            deletion.result(timeout=0.5)
        session.commit()
        with pytest.raises(ConflictError, match="needs"):
            deletion.result(timeout=10)


def test_a_retry_needs_what_the_job_needed(sessions: Sessions, features: str, model: tuple[str, str]) -> None:
    """A model that was deleted after its reader had failed is missed at the door."""
    id, _ = model
    predicting = make_job_on(sessions, features, {"type": "predict", "model": id})
    for lease in claim(sessions, Queue.FUSION):
        fail(sessions, lease)
    with sessions.begin() as session:
        registry.delete_model(session, "t", id)
    with pytest.raises(NotFoundError, match="model"):
        retry_job(sessions, predicting)
