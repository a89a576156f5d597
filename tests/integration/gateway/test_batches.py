"""Batches through OpenAI's own client: what is in their files, whatever happens on the way."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import Batch, CreateEmbeddingResponse
from sqlalchemy import update

from services.dispatcher.batches.files import BatchFiles
from services.dispatcher.plan import PlanJob
from services.dispatcher.steps import batches as step
from services.dispatcher.steps.context import SweepContext
from services.fusion import tasks as fusion
from services.gateway.deps import Services
from services.text import tasks as text
from shared.catalog import EncoderSpec, load_catalog
from shared.db import Sessions
from shared.jobs import engine
from shared.jobs.keys import create_key
from shared.jobs.models import Job
from shared.language_models import load_language_models
from shared.ml.encoders.hashing import HashingEncoder
from shared.queues import Modality, Queue, Stage
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.testing.pools import Handlers, claim, run_shard, work_off
from shared.testing.workers import make_context

ENCODER = EncoderSpec(
    id="hash-text", modality=Modality.TEXT, dimension=8, loader="hashing", options={"matryoshka": True}
)
URL = "/v1/embeddings"


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With deterministic encoders in the catalogue, one of which is exact and may be cut."""
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    picture = {"id": "hash-image", "modality": "image", "dimension": 4, "loader": "hashing"}
    file.write_text(json.dumps([ENCODER.model_dump(mode="json"), picture]))
    return {**environment, "TRIVIUM_ENCODERS_FILE": str(file)}


@pytest.fixture(scope="module")
def services(settings: Settings, sessions: Sessions, store: ObjectStore) -> Services:
    """The gateway's services; nobody waits for hints here."""
    catalog = load_catalog(settings.encoders_file)
    return Services(settings, sessions, store, catalog, load_language_models(), lambda _: None)


@pytest.fixture(scope="module")
def ai(url: str, sessions: Sessions) -> Iterator[OpenAI]:
    """OpenAI's client, as its users make it."""
    with sessions.begin() as session:
        _, key = create_key(session, tenant="default", name="test")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def pools(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[dict[Queue, Handlers]]:
    """What the dispatcher, the text pool and the fusion pool do with shards."""
    makers = {Queue.TEXT: text.make_pool, Queue.FUSION: fusion.make_pool}
    contexts = {queue: make_context(settings, sessions, store, queue) for queue in Queue}
    with ExitStack() as running:
        made = {queue: make_pool(contexts[queue]) for queue, make_pool in makers.items()}
        for pool in made.values():
            running.callback(pool.close)
        planning: Handlers = {Stage.PLAN: PlanJob(contexts[Queue.PLAN])}
        yield {Queue.PLAN: planning, **{queue: pool.handlers for queue, pool in made.items()}}


@pytest.fixture(scope="module")
def sweep(settings: Settings, sessions: Sessions, store: ObjectStore) -> Callable[[], int]:
    """The sweep's step."""
    return lambda: step.finish(SweepContext(settings, sessions, store, lambda _: None), datetime.now(UTC))


def line(custom_id: str, body: Any, **other: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body, **other}


def embedding(custom_id: str, given: Any, **more: Any) -> dict[str, Any]:
    return line(custom_id, {"model": ENCODER.id, "input": given, **more})


def begin(ai: OpenAI, lines: list[Any], **more: Any) -> Batch:
    """A batch of these lines: objects, or text as it is."""
    content = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    file = ai.files.create(file=("requests.jsonl", content.encode()), purpose="batch")
    return ai.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", **more)


def lines_of(ai: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """What is in a file of answers."""
    return [] if file_id is None else [json.loads(one) for one in ai.files.content(file_id).text.splitlines()]


def vectors(*texts: str) -> np.ndarray:
    encoder = HashingEncoder(ENCODER)
    return encoder.encode([encoder.preprocess(text) for text in texts])


def test_from_file_to_files(ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any) -> None:
    batch = begin(
        ai,
        [
            embedding("one", "a red bus"),
            embedding("two", ["a tram", {"text": "a tree"}], encoding_format="base64"),
            embedding("cut", "a long vector", dimensions=3),
            embedding("tokens", [1, 2, 3]),
            embedding("typing mistake", "x", dimension=3),
            embedding("too many", "x", dimensions=9),
            embedding("a picture", [{"image": "data:image/png;base64,AAAA"}]),
            embedding("half", ["good", " \n "]),
            "",
            embedding("last", "the end"),
        ],
        metadata={"project": "posts"},
    )
    assert (batch.status, batch.model, batch.metadata) == ("validating", ENCODER.id, {"project": "posts"})
    assert work_off(sessions, pools)
    assert ai.batches.retrieve(batch.id).status == "finalizing"
    assert sweep() == 1
    batch = Batch.model_validate(ai.batches.retrieve(batch.id).model_dump(), strict=True)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 9, "completed": 4, "failed": 5}
    output, errors = lines_of(ai, batch.output_file_id), lines_of(ai, batch.error_file_id)
    assert [one["custom_id"] for one in output] == ["one", "two", "cut", "last"]
    bodies = [CreateEmbeddingResponse.model_validate(one["response"]["body"]) for one in (output[0], *output[2:])]
    np.testing.assert_array_equal(
        np.float32([body.data[0].embedding for body in bodies[::2]]), vectors("a red bus", "the end")
    )
    short = vectors("a long vector")[0, :3]
    np.testing.assert_allclose(bodies[1].data[0].embedding, short / np.linalg.norm(short), rtol=1e-6)
    assert output[1]["response"]["status_code"] == 200
    assert [one["index"] for one in output[1]["response"]["body"]["data"]] == [0, 1]
    said = {one["custom_id"]: one["response"]["body"]["error"]["code"] for one in errors}
    assert said == {
        "tokens": "invalid_request",
        "typing mistake": "invalid_request",
        "too many": "unsupported_dimensions",
        "a picture": "unsuitable_input",
        "half": "empty_text",
    }
    ids = [one["id"] for one in (*output, *errors)]
    assert len(set(ids)) == 9
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        file = ai.files.retrieve(file_id)
        assert (file.purpose, file.status) == ("batch_output", "processed")
    assert ai.batches.list(limit=1).data[0].id == batch.id


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("{", "invalid_json_line"),
        ("7", "invalid_json_line"),
        (embedding("good 2", "x", model="hash-image"), "mismatched_model"),
        (embedding("good", "again"), "duplicate_custom_id"),
        ({**embedding("m", "x"), "method": "GET"}, "invalid_method"),
        ({**embedding("u", "x"), "url": "/v1/chat/completions"}, "invalid_url"),
        (line("b", None), "missing_required_parameter"),
        (line("b", {"input": "x"}), "missing_required_parameter"),
        (embedding("", "x"), "invalid_custom_id"),
        ({"method": "POST", "url": URL, "body": {"model": ENCODER.id}}, "invalid_custom_id"),
    ],
)
def test_one_wrong_line_fails_the_batch(
    ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any, wrong: Any, code: str
) -> None:
    batch = begin(ai, [embedding("good", "x"), wrong, embedding("also good", "y")])
    assert [lease.stage for lease in work_off(sessions, pools)] == [Stage.PLAN]
    sweep()
    batch = ai.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]


def test_a_first_line_that_is_broken_fails_the_batch_too(
    ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any
) -> None:
    batch = begin(ai, ["not json", embedding("good", "x")])
    work_off(sessions, pools)
    sweep()
    batch = ai.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert {(error.code, error.line) for error in batch.errors.data or []} >= {("invalid_json_line", 1)}


def one_of_two_slices(ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions) -> Batch:
    """A batch of 300 requests, of which those of the first slice are encoded."""
    batch = begin(ai, [embedding(f"r{i}", f"text {i}") for i in range(300)])
    work_off(sessions, {Queue.PLAN: pools[Queue.PLAN]})
    [lease] = claim(sessions, Queue.TEXT)
    run_shard(sessions, pools[Queue.TEXT], lease)
    shown = ai.batches.retrieve(batch.id)
    assert shown.status == "in_progress"
    assert shown.request_counts is not None
    assert shown.request_counts.total == 300
    return batch


def check_partial(ai: OpenAI, batch: Batch, status: str, code: str) -> None:
    batch = ai.batches.retrieve(batch.id)
    assert batch.status == status
    output, errors = lines_of(ai, batch.output_file_id), lines_of(ai, batch.error_file_id)
    assert [one["custom_id"] for one in output] == [f"r{i}" for i in range(256)]
    assert [one["custom_id"] for one in errors] == [f"r{i}" for i in range(256, 300)]
    assert {(one["response"], one["error"]["code"]) for one in errors} == {(None, code)}
    assert batch.usage is not None
    assert batch.usage.total_tokens == 256  # from the cache, too


def test_what_was_answered_before_a_cancellation_stays(
    ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any
) -> None:
    batch = one_of_two_slices(ai, pools, sessions)
    assert ai.batches.cancel(batch.id).status == "cancelling"
    sweep()
    check_partial(ai, batch, "cancelled", "batch_cancelled")
    assert ai.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_expires_with_its_window(
    ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any
) -> None:
    batch = one_of_two_slices(ai, pools, sessions)
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 24 * 3600
    with sessions.begin() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == batch.model_extra["job_id"]).values(deadline_at=past))  # type: ignore[index]  # ours
        assert engine.end_overdue(session)
    sweep()
    check_partial(ai, batch, "expired", "batch_expired")


def test_a_dispatcher_that_dies_while_it_writes_doubles_nothing(
    ai: OpenAI,
    pools: dict[Queue, Handlers],
    sessions: Sessions,
    store: ObjectStore,
    sweep: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = begin(ai, [embedding(f"r{i}", f"text {i}") for i in range(20)])
    work_off(sessions, pools)

    class DiedError(Exception):
        pass

    def die(*_: object) -> None:
        raise DiedError

    before = {found.key for found in store.list(keys.BLOBS)}
    with monkeypatch.context() as patch:
        patch.setattr(step.batches, "finalize", die)
        assert sweep() == 0
    left = {found.key for found in store.list(keys.BLOBS)} - before
    assert len(left) == 1  # of the output; the sweep of orphans finds it
    assert ai.batches.retrieve(batch.id).status == "finalizing"
    assert (sweep(), sweep()) == (1, 0)
    batch = ai.batches.retrieve(batch.id)
    assert [one["custom_id"] for one in lines_of(ai, batch.output_file_id)] == [f"r{i}" for i in range(20)]


def test_of_two_dispatchers_one_registers_its_files(
    ai: OpenAI,
    pools: dict[Queue, Handlers],
    sessions: Sessions,
    store: ObjectStore,
    sweep: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = begin(ai, [embedding("a", "text")])
    work_off(sessions, pools)
    write, before = BatchFiles.write, {found.key for found in store.list(keys.BLOBS)}

    def other_first(self: BatchFiles, *given: Any) -> None:
        monkeypatch.setattr(BatchFiles, "write", write)
        assert sweep() == 1  # the other dispatcher, from beginning to end
        write(self, *given)

    monkeypatch.setattr(BatchFiles, "write", other_first)
    sweep()
    assert len({found.key for found in store.list(keys.BLOBS)} - before) == 1
    outputs = [file.id for file in ai.files.list(purpose="batch_output") if file.filename.startswith(batch.id)]
    assert outputs == [ai.batches.retrieve(batch.id).output_file_id]


def test_the_input_file_stays_until_the_answers_are_written(
    ai: OpenAI, pools: dict[Queue, Handlers], sessions: Sessions, sweep: Any
) -> None:
    batch = begin(ai, [embedding("a", "text")])
    for _ in range(2):  # while it is planned, and while it waits for its files
        with pytest.raises(openai.ConflictError, match="is read by"):
            ai.files.delete(batch.input_file_id)
        work_off(sessions, pools)
    sweep()
    assert ai.files.delete(batch.input_file_id).deleted
    assert ai.batches.retrieve(batch.id).status == "completed"


def test_what_is_refused_at_the_door(ai: OpenAI, client: Any, stranger: Any, sweep: Any) -> None:
    batch = begin(ai, [embedding("a", "text")])
    path = f"/v1/batches/{batch.id}"
    assert stranger.get(path).json()["error"]["code"] == "batch_not_found"
    assert stranger.post(f"{path}/cancel").status_code == 404
    assert stranger.get("/v1/batches").json()["data"] == []
    body = {"input_file_id": batch.input_file_id, "endpoint": URL, "completion_window": "24h"}
    for change, status, param in (
        ({"input_file_id": "file-x"}, 404, "input_file_id"),
        ({"endpoint": "/v1/responses"}, 422, "endpoint"),
        ({"completion_window": "a day"}, 422, "completion_window"),
        ({"completion_window": "721h"}, 422, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, 422, "output_expires_after"),
    ):
        answer = client.post("/v1/batches", json={**body, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        begin(ai, [line("a", {"model": "nowhere", "input": "x"})])
    ai.batches.cancel(batch.id)
    sweep()
    answer = client.post(f"/v1/jobs/{batch.model_extra['job_id']}/retry")  # type: ignore[index]  # ours
    assert answer.status_code == 409


def test_a_repeated_request_makes_no_second_batch(ai: OpenAI, client: Any) -> None:
    file = ai.files.create(file=("a.jsonl", json.dumps(embedding("a", "x")).encode()), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": URL}
    first, second = (client.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"}).json() for _ in range(2))
    assert first["id"] == second["id"]
