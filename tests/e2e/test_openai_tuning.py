"""A model tuned and used through OpenAI's own client alone: pictures and sounds, from upload to answer."""

import base64
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from PIL import Image

from deploy.local.stack import Stack
from shared.testing.jobs import wait_for
from shared.testing.tiny import sounds

ENDED = {"succeeded", "failed", "cancelled"}
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
EPOCHS = 2


@pytest.fixture(scope="module")
def ai(stack: Stack) -> Iterator[OpenAI]:
    """OpenAI's client, with a key."""
    stack.wait_workers({"fine_tune": 1, "generate": 1})
    key = httpx.post(f"{stack.gateway_url}/v1/keys", json={"name": "tuning"}).json()["key"]
    with OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=key, timeout=120, max_retries=5) as client:
        yield client


def asked(number: int) -> list[dict[str, Any]]:
    """A question about a coloured picture and a sound."""
    target = io.BytesIO()
    Image.new("RGB", (32 + number, 32), list(COLOURS.values())[number % 2]).save(target, "PNG")
    picture, sound = (base64.b64encode(one).decode() for one in (target.getvalue(), sounds(number + 1, number)[-1][0]))
    return [
        {"type": "text", "text": "Which colour?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ]


def conversations(count: int) -> io.BytesIO:
    """Examples as OpenAI's fine-tuning takes them."""
    lines = [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": asked(number)},
                {"role": "assistant", "content": list(COLOURS)[number % 2]},
            ]
        }
        for number in range(count)
    ]
    return io.BytesIO("\n".join(map(json.dumps, lines)).encode())


def create(ai: OpenAI, file: str, epochs: int) -> FineTuningJob:
    """A job that tunes the tiny model."""
    hyperparameters: Any = {"n_epochs": epochs, "batch_size": 4, "learning_rate_multiplier": 2.0}
    return ai.fine_tuning.jobs.create(
        model="tiny-llama",
        training_file=file,
        seed=7,
        suffix="colours",
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata={"made": "by a test"},
    )


@pytest.fixture(scope="module")
def file(ai: OpenAI) -> str:
    """The examples, uploaded."""
    return ai.files.create(file=("colours.jsonl", conversations(24)), purpose="fine-tune").id


@pytest.fixture(scope="module")
def tuned(ai: OpenAI, file: str) -> FineTuningJob:
    """A job that ran to its end."""
    job = create(ai, file, EPOCHS)
    assert job.status in {"validating_files", "queued", "running"}
    assert (job.fine_tuned_model, job.trained_tokens, job.user_provided_suffix) == (None, None, "colours")

    def ended() -> FineTuningJob | None:
        found = ai.fine_tuning.jobs.retrieve(job.id)
        return found if found.status in ENDED else None

    return wait_for(ended, seconds=240, what="the end of the tuning")


def test_a_job_says_what_it_made_and_of_what(ai: OpenAI, tuned: FineTuningJob, file: str) -> None:
    assert (tuned.status, tuned.error) == ("succeeded", None)
    assert (tuned.model, tuned.training_file, tuned.seed) == ("tiny-llama", file, 7)
    assert tuned.finished_at is not None
    assert tuned.finished_at >= tuned.created_at
    assert tuned.fine_tuned_model is not None
    assert tuned.fine_tuned_model in {model.id for model in ai.models.list()}
    assert tuned.id in {job.id for job in ai.fine_tuning.jobs.list(metadata={"made": "by a test"})}  # type: ignore[arg-type]  # its type has null
    entry = httpx.get(f"{ai.base_url}models/{tuned.fine_tuned_model}", headers=ai.auth_headers).json()
    read = entry["fine_tuned"]["metrics"]["dry_run"]["train"]
    epochs = EPOCHS + 1  # the projectors have one of their own
    assert tuned.trained_tokens == epochs * read["tokens"]
    [checkpoint] = ai.fine_tuning.jobs.checkpoints.list(tuned.id)
    assert checkpoint.fine_tuned_model_checkpoint == tuned.fine_tuned_model
    steps = math.ceil(read["examples"] / 4)
    assert checkpoint.step_number in range(steps, epochs * steps + 1, steps)
    assert checkpoint.metrics.step == checkpoint.step_number
    told = [e.data for e in ai.fine_tuning.jobs.list_events(tuned.id) if e.type == "metrics"]
    last = told[0]  # of epochs that take less than a second only some are told, the last always
    assert isinstance(last, dict)
    assert (last["epoch"], last["steps"]) == (epochs, epochs * steps)
    assert checkpoint.metrics.full_valid_loss is not None
    assert checkpoint.metrics.full_valid_loss <= last["validation_loss"]


def test_events_come_newest_first_page_after_page(ai: OpenAI, tuned: FineTuningJob) -> None:
    events = list(ai.fine_tuning.jobs.list_events(tuned.id, limit=3))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == "Fine-tuning job created"
    assert len({event.id for event in events}) == len(events) > 6
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
    assert {event.level for event in events} <= {"info", "warn"}


def test_the_model_answers_in_chat_and_batch_alike(ai: OpenAI, tuned: FineTuningJob) -> None:
    assert tuned.fine_tuned_model is not None
    messages: Any = [{"role": "user", "content": asked(3)}]
    said = {"model": tuned.fine_tuned_model, "messages": messages, "temperature": 0, "max_completion_tokens": 8}
    answer = ai.chat.completions.create(**said)
    assert answer.model == tuned.fine_tuned_model
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in ai.chat.completions.create(**said, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == answer.choices[0].message.content
    request = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": said}
    uploaded = ai.files.create(file=("asked.jsonl", io.BytesIO(json.dumps(request).encode())), purpose="batch")
    batch = ai.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )  # fmt: skip
    wait_for(
        lambda: ai.batches.retrieve(batch.id).status in {"completed", "failed", "expired"},
        seconds=120,
        what="the end of the batch",
    )
    output = ai.batches.retrieve(batch.id).output_file_id
    assert output is not None
    [line] = [json.loads(one) for one in ai.files.content(output).iter_lines()]
    body = line["response"]["body"]
    assert body["choices"][0]["message"]["content"] == answer.choices[0].message.content
    assert body["usage"]["completion_tokens"] == answer.usage.completion_tokens


def test_a_cancelled_job_makes_no_model(ai: OpenAI, file: str) -> None:
    job = create(ai, file, 1000)
    wait_for(
        lambda: any(e.type == "metrics" for e in ai.fine_tuning.jobs.list_events(job.id)), seconds=120, what="an epoch"
    )
    ai.fine_tuning.jobs.cancel(job.id)

    def ended() -> FineTuningJob | None:
        found = ai.fine_tuning.jobs.retrieve(job.id)
        return found if found.status in ENDED else None

    found = wait_for(ended, seconds=60, what="the end of the tuning")
    assert (found.status, found.fine_tuned_model) == ("cancelled", None)
    assert list(ai.fine_tuning.jobs.checkpoints.list(job.id)) == []


def test_a_deleted_model_is_gone(ai: OpenAI, tuned: FineTuningJob) -> None:
    """Runs last: the others use it."""
    assert tuned.fine_tuned_model is not None
    assert ai.models.delete(tuned.fine_tuned_model).deleted
    with pytest.raises(NotFoundError):
        ai.chat.completions.create(model=tuned.fine_tuned_model, messages=[{"role": "user", "content": "Hello"}])
