"""Jobs that tune a language model, through the engine, object storage and the registry."""

import json
from pathlib import Path
from typing import Any

import pytest

import services.finetune.tasks
import services.fusion.tasks
from shared.db import Sessions
from shared.jobs import registry
from shared.jobs.models import Event, Job, Model
from shared.ml.language.generate import Generation, Prompted, generate
from shared.ml.language.loading import load_language_model
from shared.ml.language.tuned import FILES, TunedLanguageModel
from shared.prompts import PromptTemplate
from shared.queues import Queue
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing.jobs import submit
from shared.testing.oracle import missing_objects
from shared.testing.pools import work_off
from shared.testing.tiny import tiny_language_model
from shared.testing.workers import make_context

QUESTION = "Say it.\n{text}"


@pytest.fixture(scope="module")
def tiny(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a tiny language model in the catalogue."""
    spec = tiny_language_model(tmp_path_factory.mktemp("tiny"))
    file = tmp_path_factory.mktemp("catalogue") / "models.json"
    file.write_text(json.dumps([spec.model_dump()]))
    return settings.model_copy(update={"language_models_file": file})


def run(settings: Settings, sessions: Sessions, store: ObjectStore, **options: Any) -> Job:
    """A job of twenty items with labels and four conversations, run to its end."""
    return work(settings, sessions, store, begin(settings, sessions, store, **options))


def begin(settings: Settings, sessions: Sessions, store: ObjectStore, **options: Any) -> str:
    """The id of such a job, accepted."""
    items: list[dict[str, Any]] = [
        {"id": f"item-{i}", "text": "ab"[i % 2] * 3, "label": ["no", "yes"][i % 2]} for i in range(20)
    ]
    items += [{"id": f"talk-{i}", "instruction": "Say it.", "input": "bbb", "output": "yes"} for i in range(4)]
    request = {
        "type": "fine_tune", "method": "instruction", "items": items, "language_model": "tiny-llama",
        "encoders": {"text": None, "image": None, "audio": None}, "prompt": {"template": QUESTION}, **options,
    }  # fmt: skip
    training = {"epochs": 2, "batch_size": 4, "max_length": 80, "max_new_tokens": 4}
    return submit(settings, sessions, store, request | {"training": training | options.get("training", {})})


def work(settings: Settings, sessions: Sessions, store: ObjectStore, id: str) -> Job:
    """The job once workers have done what is to be done."""
    pools = {
        queue: make_pool(make_context(settings, sessions, store, queue)).handlers
        for queue, make_pool in (
            (Queue.FUSION, services.fusion.tasks.make_pool),
            (Queue.FINE_TUNE, services.finetune.tasks.make_pool),
        )
    }
    work_off(sessions, pools)
    with sessions() as session:
        return session.get_one(Job, id)


def test_a_job_makes_a_model_that_answers(tiny: Settings, sessions: Sessions, store: ObjectStore) -> None:
    """In the registry with its scores, from whose files it answers as it did when it was judged; another goes on."""
    job = run(tiny, sessions, store)
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    with sessions() as session:
        [row] = session.query(Model).where(Model.job_id == job.id)
        [shown] = registry.fitted_models(session, "default", row.id)
        kinds = {event.type for event in session.query(Event).where(Event.job_id == job.id)}
    assert {"training.dry_run", "training.split", "training.epoch", "training.batch"} <= kinds
    assert (shown.kind, shown.dimension) == ("instruction", None)
    assert shown.fine_tuned is not None
    metrics = shown.fine_tuned.metrics
    assert {"base", "test", "intervals", "dry_run"} <= metrics.keys()
    files = {name: store.get(file["key"]) for name, file in row.spec["files"].items()}
    base = load_language_model(tiny_spec(tiny))
    model = TunedLanguageModel.load({n: d for n, d in files.items() if n in FILES}, base)
    lines = [json.loads(line) for line in files["test_items.jsonl"].splitlines()]
    assert lines
    prompt = model.config.prompt
    assert prompt == PromptTemplate(template=QUESTION)
    drawn = Generation(temperature=0, max_tokens=4, stop=["\n"])
    asked = [Prompted(prompt.question(line["question"].removeprefix("Say it.\n").strip(), []), (), drawn)
             for line in lines if line["id"].startswith("item")]  # fmt: skip
    told = [answer.text.strip() for answer in generate(model, asked)]
    assert told == [line["tuned"] for line in lines if line["id"].startswith("item")]
    again = run(tiny, sessions, store, language_model=row.id, training={"epochs": 1})
    assert (again.status, again.error_message) == (JobStatus.SUCCEEDED, None)


def test_a_soft_prompt_is_learned_by_two_processes(tiny: Settings, sessions: Sessions, store: ObjectStore) -> None:
    """Each with the base model; what the first makes of it is the job's model, and what it says are its events."""
    worker = tiny.worker.model_copy(update={"training_processes": 2, "device": "cpu", "checkpoint_seconds": 0.0})
    together = tiny.model_copy(update={"worker": worker})
    job = run(together, sessions, store, method="prompt", how="soft", training={"adapter": "prompt"})
    assert (job.status, job.error_message) == (JobStatus.SUCCEEDED, None)
    with sessions() as session:
        [row] = session.query(Model).where(Model.job_id == job.id)
        epochs = [e.data["epoch"] for e in session.query(Event).where(Event.job_id == job.id).order_by(Event.id)
                  if e.type == "training.epoch"]  # fmt: skip
    assert json.loads(store.get(row.spec["files"]["metrics.json"]["key"]))["processes"] == 2
    assert epochs in ([2], [1, 2])  # of events that come often some are left out, never the last
    assert missing_objects(sessions, store) == []


def test_what_cannot_be_tuned_ends_the_job_in_words(tiny: Settings, sessions: Sessions, store: ObjectStore) -> None:
    """With a stable code."""
    job = run(tiny, sessions, store, training={"quantization": "4bit"})
    assert (job.status, job.error_code) == (JobStatus.FAILED, "quantization_unavailable")


def test_what_an_earlier_release_took_ends_the_job_in_words(
    tiny: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Its gateway did not know that a soft prompt cannot be packed: one attempt, and what to change."""
    id = begin(tiny, sessions, store)
    with sessions.begin() as session:
        job = session.get_one(Job, id)
        job.request = {**job.request, "training": {**job.request["training"], "adapter": "prompt", "packing": True}}
    job = work(tiny, sessions, store, id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "invalid_request")
    assert "leave out packing" in (job.error_message or "")


def tiny_spec(settings: Settings) -> Any:
    """Of the catalogue."""
    from shared.language_models import load_language_models

    assert settings.language_models_file is not None
    return load_language_models(Path(settings.language_models_file))["tiny-llama"]
