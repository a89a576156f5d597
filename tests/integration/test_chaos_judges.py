"""The chaos suite's judges find each kind of damage: it is made on purpose, in rows, objects, answers and on disk."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import update

from shared.db import Sessions
from shared.ids import new_id
from shared.jobs.models import Model, Shard
from shared.schemas import JobStatus
from shared.settings import Settings
from shared.storage import keys
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.jobs import submit
from tests.chaos import callers, verdict
from tests.chaos.callers import Callers
from tests.chaos.workload import Outcome

REQUEST = {"items": [{"id": "a", "text": "words"}]}


def found_in(sessions: Sessions, store: ObjectStore) -> set[str]:
    """What is missing, changed or named by no row."""
    return {*oracle.missing_objects(sessions, store), *oracle.unnamed_objects(sessions, store)}


@pytest.fixture
def put(store: ObjectStore) -> Any:
    """Writes an object and says what a row says of it."""

    def write(key: str) -> dict[str, Any]:
        stored = store.put(key, key.encode(), "text/plain")
        return {"key": stored.key, "sha256": stored.sha256, "bytes": stored.bytes}

    return write


def test_what_training_leaves_is_looked_after(
    settings: Settings, sessions: Sessions, store: ObjectStore, put: Any
) -> None:
    """Of a model each file, and each checkpoint: gone, changed, or left by an attempt that lost."""
    job, model, token = submit(settings, sessions, store, REQUEST), new_id("model"), uuid4()
    files = {name: put(keys.model(model, token, name)) for name in ("model.safetensors", "logs/events")}
    saved = {name: put(f"jobs/{job}/fine_tune/{token.hex}-000001-{name}") for name in ("running", "trials")}
    orphans = {put(keys.model(model, uuid4(), "model.safetensors"))["key"], put(f"jobs/{job}/fine_tune/left")["key"]}
    with sessions.begin() as session:
        session.add(
            Model(
                id=model, tenant="default", job_id=job, kind="classifier", dimension=1, spec={"files": files},
                fingerprint="0", key=files["model.safetensors"]["key"], sha256=files["model.safetensors"]["sha256"],
            )
        )  # fmt: skip
        session.execute(update(Shard).where(Shard.job_id == job, Shard.stage == "text").values(checkpoints=saved))
    assert found_in(sessions, store) == orphans
    gone, changed = [files["logs/events"]["key"], saved["trials"]["key"]], saved["running"]["key"]
    store.delete(gone)
    store.put(changed, b"other bytes", "text/plain")
    expected = {*(f"{key} is not there" for key in gone), f"{changed} has another sha256 than its row says"}
    assert found_in(sessions, store) == orphans | expected


GOOD = Outcome(JobStatus.SUCCEEDED, None, (3, 3, 0, 0), (), ("a" * 64,), None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"models": ("b" * 64,)}, "wrong: models"),  # other weights
        ({"models": ()}, "wrong: models"),
        ({"models": ("a" * 64, "a" * 64)}, "wrong: models"),  # the same model twice
        ({"counts": (3, 2, 0, 1)}, "wrong: counts"),
        ({"errors": (("a", None, "x"),)}, "wrong: errors"),
        ({"status": JobStatus.FAILED, "error_code": "x"}, "wrong: status"),
    ],
)
def test_an_outcome_that_differs_is_found(changed: dict[str, Any], words: str) -> None:
    """Everything that a caller sees of a job is compared."""
    assert GOOD.faults(GOOD) == []
    assert replace(GOOD, **changed).faults(GOOD)[0].startswith(words)


def test_what_a_run_leaves_on_the_machine_is_found(tmp_path: Path) -> None:
    """A process, a temporary file, a file that was not finished."""
    temporary, data = tmp_path / "tmp", tmp_path / "data" / "s3"
    for folder in (temporary, data):
        folder.mkdir(parents=True)
    judged = verdict.Verdict()
    verdict.judge_machine(judged, tmp_path, temporary)
    assert judged.good
    (temporary / "left").touch()
    (data / "upload.part").touch()
    command = [sys.executable, "-c", "input()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        verdict.judge_machine(judged, tmp_path, temporary)
        process.communicate(b"\n")
    kinds = [words.partition(" ")[0] for words in judged.left_behind]
    assert sorted(kinds) == ["process", "temporary", "unfinished"]
    assert str(process.pid) in "".join(judged.left_behind)


def answer(status: int, **entry: Any) -> httpx.Response:
    """What the gateway says of one item."""
    whole = {"prediction": ["a"], "probability": 0.75, "errors": [], **entry}
    return httpx.Response(status, json={"data": [whole]} if status == httpx.codes.OK else {})


def test_callers_tell_right_from_wrong_and_from_an_excuse() -> None:
    """Rounding is right, 503 is an excuse; another class, an item's error that was none, and 500 are wrong."""
    asking = Callers("http://gateway", "model", "sk-key", "seed")
    asking._expected = [callers._said(answer(200).json())]
    for good in (answer(200), answer(200, probability=0.7500001), answer(503), answer(429), answer(504)):
        asking._judge(good, 0)
    assert (asking.ended, asking.wrong) == ({"answered": 2, "refused": 3}, [])
    bad = [
        answer(200, prediction=["b"]), answer(200, probability=0.7), answer(500),
        answer(200, errors=[{"modality": "image", "code": "decode_crashed"}]),
    ]  # fmt: skip
    for one in bad:
        asking._judge(one, 0)
    assert len(asking.wrong) == len(bad)


def test_callers_notice_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes a request and is silent is stuck; one that is not there was killed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = Callers(url, "model", "sk-key", "seed")
        with httpx.Client(base_url=url, timeout=0.2) as http:
            asking._ask(http, 0)
    with httpx.Client(base_url=url, timeout=0.2) as http:
        asking._ask(http, 0)
    assert asking.ended == {"hanging": 1, "cut off": 1}
    judged = verdict.Verdict()
    verdict.judge_callers(judged, asking)
    assert judged.stuck == asking.hanging
    assert judged.wrong == ["no prediction was answered"]
