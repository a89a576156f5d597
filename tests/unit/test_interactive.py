"""Interactive requests on the model thread: gathered, in turn, and none of the model thread's trouble."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from shared.lanes.messages import Failed, Result
from shared.worker import interactive
from shared.worker.context import Prepared
from shared.worker.control import Control
from shared.worker.interactive import Interactive, Ready

LATER = time.time() + 3600


class Model:
    """Answers each value with itself; keeps the batches."""

    def __init__(self, interactive: Interactive):
        self.interactive = interactive
        self.batches: list[list[Any]] = []
        self.answers: dict[Any, Any] = {}

    def run(self, batch: Sequence[Any]) -> list[Result]:
        self.batches.append(list(batch))
        if "bad" in batch:
            raise RuntimeError("surprise")
        return [Failed(code=value, message="") for value in batch]

    def add(self, value: str, *, model: str = "m", weight: float = 0.25, deadline: float = LATER) -> None:
        self.interactive.expect(model)
        self.ready(value, model, weight, deadline)

    def ready(self, value: str, model: str = "m", weight: float = 0.25, deadline: float = LATER) -> None:
        def answer(outcome: Result | Exception | None) -> None:
            self.answers[value] = outcome.code if isinstance(outcome, Failed) else outcome

        self.interactive.add(Ready(model, deadline, Prepared(value, weight, 0), self.run, answer))


@pytest.fixture
def wakes() -> list[None]:
    """How often the model thread was woken."""
    return []


@pytest.fixture
def model(wakes: list[None]) -> Model:
    """A model and the requests for it."""
    return Model(Interactive(wake=lambda: wakes.append(None)))


def test_requests_for_one_model_run_together_up_to_one_batch(model: Model, wakes: list[None]) -> None:
    for value in "abcdef":
        model.add(value)
    model.add("other", model="n")
    model.interactive.run_waiting()
    assert model.batches == [["a", "b", "c", "d"], ["other"]]
    assert len(wakes) == 8  # one for each, and one since something is left
    model.interactive.run_waiting()
    assert model.batches[2:] == [["e", "f"]]
    assert model.answers == {value: value for value in [*"abcdef", "other"]}


def test_what_is_nearly_prepared_is_taken_along(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "GATHER_SECONDS", 30.0)
    model.add("a")
    model.interactive.expect("m")
    threading.Timer(0.1, model.ready, ["b"]).start()
    model.interactive.run_waiting()
    assert model.batches == [["a", "b"]]


def test_nobody_is_waited_for_who_is_not_coming(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "GATHER_SECONDS", 30.0)
    model.add("a")
    model.interactive.expect("n")  # for another model
    model.interactive.expect("m")
    threading.Timer(0.1, model.interactive.forget, ["m"]).start()
    began = time.monotonic()
    model.interactive.run_waiting()
    assert model.batches == [["a"]]
    assert time.monotonic() - began < 20


def test_late_requests_are_not_worked_on(model: Model) -> None:
    model.add("late", deadline=time.time() - 1)
    model.add("a")
    model.interactive.run_waiting()
    assert model.batches == [["a"]]
    assert model.answers == {"late": None, "a": "a"}


def test_a_failure_is_the_callers(model: Model) -> None:
    model.add("bad")
    model.add("a", model="n")
    model.interactive.run_waiting()
    assert isinstance(model.answers["bad"], RuntimeError)
    assert model.answers["a"] == "a"


def test_between_batches_of_a_shard(model: Model) -> None:
    """Out of reach until the shard breathes; then what waits runs, and the shard is told to be brief."""
    control = Control(1)
    control.between = model.interactive.between_batches
    model.interactive.begin_shard()
    assert not model.interactive.reachable
    assert control.breathe() is False
    assert model.interactive.reachable
    model.add("a")
    assert control.breathe() is True
    assert model.answers == {"a": "a"}
    model.interactive.end_shard()
    assert not model.interactive.in_shard


def test_the_shard_is_told_to_be_brief_for_a_while(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(interactive.time, "monotonic", lambda: now)
    model.add("a")
    model.interactive.run_waiting()
    assert model.interactive.busy
    now += interactive.BUSY_SECONDS
    assert not model.interactive.busy
