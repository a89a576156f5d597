"""Fine-tuning jobs through OpenAI's own client; the pools that train are played."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from services.dispatcher.plan import PlanJob
from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.keys import create_key
from shared.jobs.models import Job, Model
from shared.language_models import DEFAULT_LANGUAGE_MODEL
from shared.queues import Queue, Stage
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.pools import work_off
from shared.testing.workers import make_context
from tests.integration.gateway.conftest import Pools

Plan = Callable[[], None]


@pytest.fixture(scope="module")
def ai(url: str, sessions: Sessions) -> Iterator[OpenAI]:
    """OpenAI's client, as its users make it."""
    with sessions.begin() as session:
        _, key = create_key(session, tenant="default", name="test")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def plan(settings: Settings, sessions: Sessions, store: ObjectStore) -> Plan:
    """Plans what waits to be planned."""
    handler = PlanJob(make_context(settings, sessions, store, Queue.PLAN))
    return lambda: work_off(sessions, {Queue.PLAN: {Stage.PLAN: handler}}) and None


def upload(ai: OpenAI, count: int, word: str = "question") -> str:
    """A file of conversations."""
    lines = [
        {"messages": [{"role": "user", "content": f"{word} {i}"}, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(count)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    return ai.files.create(file=("conversations.jsonl", content), purpose="fine-tune").id


def begin(ai: OpenAI, **more: Any) -> FineTuningJob:
    return ai.fine_tuning.jobs.create(model=DEFAULT_LANGUAGE_MODEL, training_file=upload(ai, 6), **more)


def test_from_file_to_model(ai: OpenAI, plan: Plan, pools: Pools, sessions: Sessions, store: ObjectStore) -> None:
    hyperparameters: Any = {"n_epochs": 2, "learning_rate_multiplier": 0.5}
    job = begin(
        ai,
        validation_file=upload(ai, 2, "held out"),
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        suffix="posts",
        seed=7,
        metadata={"project": "posts"},
    )
    assert (job.status, job.seed, job.fine_tuned_model) == ("validating_files", 7, None)
    plan()
    assert ai.fine_tuning.jobs.retrieve(job.id).status == "running"
    with sessions() as session:
        row = session.get_one(Job, job.id)
    assert row.request["training"] | {"seed": 7, "epochs": 2, "learning_rate": 1e-4} == row.request["training"]
    [slice_] = [found.key for found in store.list(f"jobs/{job.id}/plan/")]
    items = [json.loads(line) for line in store.get(slice_).splitlines()]
    assert [item["id"] for item in items[-2:]] == ["validation-line-1", "validation-line-2"]
    assert [item.get("split") for item in items] == [None] * 6 + ["validation"] * 2
    assert items[-1]["messages"][0] == {"role": "user", "content": "held out 1"}
    assert ai.fine_tuning.jobs.checkpoints.list(job.id).data == []
    pools.run()
    job = FineTuningJob.model_validate(ai.fine_tuning.jobs.retrieve(job.id).model_dump(), strict=True)
    assert (job.status, job.error, job.metadata) == ("succeeded", None, {"project": "posts"})
    assert job.hyperparameters.model_dump() == {**hyperparameters, "batch_size": "auto"}
    assert job.fine_tuned_model is not None
    assert ai.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    [checkpoint] = ai.fine_tuning.jobs.checkpoints.list(job.id)
    FineTuningJobCheckpoint.model_validate(checkpoint.model_dump(), strict=True)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
    events = list(ai.fine_tuning.jobs.list_events(job.id, limit=2))  # goes on to the next pages
    for event in events:
        FineTuningJobEvent.model_validate(event.model_dump(), strict=True)
    assert [event.message for event in (events[0], events[-1])] == [
        "The job has successfully completed",
        "Fine-tuning job created",
    ]


def register(sessions: Sessions, kind: str, spec: dict[str, Any]) -> str:
    """A model in the registry, as a job leaves it."""
    with sessions.begin() as session:
        row = Model(
            id=new_id("model"), tenant="default", kind=kind, modality=None, dimension=4, fingerprint="f", key="k",
            sha256="0" * 64, spec={"files": {}, **spec},
        )  # fmt: skip
        session.add(row)
        return row.id


def test_a_tuned_model_goes_on_with_the_encoders_of_its_training(
    ai: OpenAI, client: httpx.Client, sessions: Sessions
) -> None:
    """OpenAI's shape has no word for them; where there is one, others are refused, and features that they made."""
    trained = {"image": "resnet18", "audio": "speaker"}
    model = register(sessions, "instruction", {"fine_tuned": {"encoders": trained}, "preprocessing": {}})
    job = ai.fine_tuning.jobs.create(model=model, training_file=upload(ai, 2))
    with sessions() as session:
        assert session.get_one(Job, job.id).request["encoders"] == {"text": None, **trained}
    body = {"type": "fine_tune", "method": "instruction", "language_model": model, "items": [{"id": "a", "text": "x"}]}
    refused = client.post("/v1/jobs", json={**body, "encoders": {"audio": "mfcc-stats"}})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "unsuitable_encoder", "encoders.audio")
    deaf = client.post("/v1/jobs", json={**body, "encoders": {"audio": None}})
    assert deaf.json()["request"]["encoders"] == {"text": None, "image": "resnet18", "audio": None}
    for id in (job.id, deaf.json()["id"]):
        client.post(f"/v1/jobs/{id}/cancel")


def test_items_are_predicted_by_a_model_that_was_asked_for_here(
    ai: OpenAI, client: httpx.Client, plan: Plan, pools: Pools
) -> None:
    """As by any other: in the platform's own jobs."""
    job = begin(ai)
    plan()
    pools.run()
    made = ai.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    answer = client.post("/v1/jobs", json={"type": "predict", "model": made, "items": [{"id": "a", "text": "x"}]})
    assert (answer.status_code, answer.json()["request"]["generates"]) == (202, True), answer.text
    client.post(f"/v1/jobs/{answer.json()['id']}/cancel")


def test_an_encoder_is_no_language_model(client: httpx.Client, sessions: Sessions) -> None:
    body = {"type": "fine_tune", "method": "instruction", "items": [{"id": "a", "text": "x"}]}
    answer = client.post("/v1/jobs", json={**body, "language_model": register(sessions, "fitted_encoder", {})})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsuitable_model"), answer.text


def test_jobs_are_listed_by_metadata(ai: OpenAI, client: httpx.Client, features_request: Any) -> None:
    made = [begin(ai, metadata={"run": str(i)}).id for i in range(3)]
    other = client.post("/v1/jobs", json=features_request(1, metadata={"run": "2"})).json()["id"]
    assert [job.id for job in ai.fine_tuning.jobs.list(limit=2)][:3] == made[::-1]
    assert [job.id for job in ai.fine_tuning.jobs.list(metadata={"run": "2"})] == [made[2]]
    with pytest.raises(openai.NotFoundError):
        ai.fine_tuning.jobs.retrieve(other)


def test_a_cancelled_job_makes_no_model(ai: OpenAI, plan: Plan, pools: Pools) -> None:
    job = begin(ai)
    plan()
    assert ai.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    pools.run()
    job = ai.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model) == ("cancelled", None)
    assert job.finished_at is not None


def test_why_a_job_failed(ai: OpenAI, plan: Plan, pools: Pools) -> None:
    file = ai.files.create(file=("broken.jsonl", b'{"messages": 7}\n'), purpose="fine-tune").id
    job = ai.fine_tuning.jobs.create(model=DEFAULT_LANGUAGE_MODEL, training_file=file)
    plan()
    job = FineTuningJob.model_validate(ai.fine_tuning.jobs.retrieve(job.id).model_dump(), strict=True)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "every_item_failed"
    assert [event.message for event in ai.fine_tuning.jobs.list_events(job.id) if event.level == "error"] == [
        job.error.message
    ]


def test_the_files_stay_until_they_are_read(ai: OpenAI) -> None:
    validation = upload(ai, 1, "held out")
    job = begin(ai, validation_file=validation)
    for file in (job.training_file, validation):
        with pytest.raises(openai.ConflictError, match="is read by"):
            ai.files.delete(file)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-4o-mini"}, 422, "model"),
        ({"model": "model-01k9w0e1a4b7c2d5f8g3h6j9km"}, 404, "model"),
        ({"training_file": "file-x"}, 404, "training_file"),
        ({"validation_file": "file-x"}, 404, "validation_file"),
        ({"method": {"type": "dpo", "dpo": {}}}, 422, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, 422, "hyperparameters.n_epochs"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 422, "integrations"),
        ({"suffix": "x" * 65}, 422, "suffix"),
    ],
)
def test_what_is_refused_at_the_door(
    ai: OpenAI, client: httpx.Client, change: dict[str, Any], status: int, param: str
) -> None:
    body = {"model": DEFAULT_LANGUAGE_MODEL, "training_file": upload(ai, 1), **change}
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_another_tenant_sees_nothing(ai: OpenAI, stranger: httpx.Client) -> None:
    path = f"/v1/fine_tuning/jobs/{begin(ai).id}"
    answers = [stranger.get(path), stranger.post(f"{path}/cancel"), stranger.get(f"{path}/events")]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert stranger.get("/v1/fine_tuning/jobs").json()["data"] == []
