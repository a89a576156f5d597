"""Interactive requests on the model thread: gathered, in turn, and none of the model thread's trouble."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from shared.lanes.messages import Failed, Result, Said
from shared.worker import interactive
from shared.worker.context import Prepared, Steps
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
def wakes() -> list[Callable[[], None]]:
    """What the model thread was woken for."""
    return []


@pytest.fixture
def model(wakes: list[Callable[[], None]]) -> Model:
    """A model and the requests for it."""
    return Model(Interactive(wake=wakes.append))


def test_requests_for_one_model_run_together_up_to_one_batch(model: Model, wakes: list[Callable[[], None]]) -> None:
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


class Speaker:
    """Answers each value with its letters, one a step, all callers of a batch together."""

    def __init__(self, interactive: Interactive):
        self.interactive = interactive
        self.told: list[str] = []
        self.gone: dict[str, threading.Event] = {}
        self.closed = 0

    def run(self, batch: Sequence[str]) -> Steps:
        try:
            for place in range(max(len(value) for value in batch)):
                if any(value[place:].startswith("!") for value in batch):
                    raise RuntimeError("surprise")
                yield [(i, _letter(value, place)) for i, value in enumerate(batch) if place < len(value)]
        finally:
            self.closed += 1

    def add(self, value: str) -> None:
        def answer(outcome: Result | Exception | None) -> None:
            said = outcome.text if isinstance(outcome, Said) else outcome.code if isinstance(outcome, Failed) else None
            self.told.append(f"{value}:{said or repr(outcome)}")

        prepared = Prepared(value, 0.25, 0)
        self.gone[value] = prepared.gone
        self.interactive.expect("m")
        self.interactive.add(Ready("m", LATER, prepared, self.run, answer))


def _letter(value: str, place: int) -> Result:
    is_last = place == len(value) - 1
    return Failed(code=value[place], message="") if is_last else Said(text=value[place])


@pytest.fixture
def woken() -> deque[Callable[[], None]]:
    """What the model thread was woken for."""
    return deque()


@pytest.fixture
def speaker(woken: deque[Callable[[], None]]) -> Speaker:
    """A model that answers bit by bit."""
    return Speaker(Interactive(wake=woken.append))


def test_answers_come_bit_by_bit_and_newcomers_have_their_turn(
    speaker: Speaker, woken: deque[Callable[[], None]]
) -> None:
    speaker.add("abcd")
    woken.popleft()()
    speaker.add("xy")
    while woken:
        woken.popleft()()
        assert len(woken) <= 2, "one call to go on, however many came"
    assert speaker.told == ["abcd:a", "abcd:b", "xy:x", "abcd:c", "xy:y", "abcd:d"]
    assert speaker.closed == 2
    assert not speaker.interactive._running


def test_between_two_batches_of_a_shard_each_answer_goes_on_by_one_step(speaker: Speaker) -> None:
    speaker.add("abc")
    assert [speaker.interactive.between_batches() for _ in range(2)] == [True, True]
    assert speaker.told == ["abc:a", "abc:b"]


def test_who_has_gone_is_told_nothing_more_and_the_last_one_ends_the_work(speaker: Speaker) -> None:
    speaker.add("abcd")
    speaker.add("wxyz")
    speaker.interactive.run_waiting()
    speaker.gone["abcd"].set()
    speaker.interactive.run_waiting()
    speaker.gone["wxyz"].set()
    speaker.interactive.run_waiting()
    assert speaker.told == ["abcd:a", "wxyz:w", "abcd:None", "wxyz:x", "wxyz:None"]
    assert speaker.closed == 1


def test_a_failure_on_the_way_is_told_to_those_who_still_wait(speaker: Speaker) -> None:
    speaker.add("a")
    speaker.add("x!z")
    for _ in range(3):
        speaker.interactive.run_waiting()
    assert speaker.told == ["a:a", "x!z:x", "x!z:RuntimeError('surprise')"]


def test_more_batches_than_may_run_wait_for_one_to_end(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "MOST_AT_ONCE", 1)
    speaker.add("ab")
    speaker.interactive.run_waiting()
    speaker.add("xy")
    for _ in range(4):
        speaker.interactive.run_waiting()
    assert speaker.told == ["ab:a", "ab:b", "xy:x", "xy:y"]


def test_what_runs_when_the_worker_leaves_is_told_so(speaker: Speaker) -> None:
    speaker.add("abc")
    speaker.interactive.run_waiting()
    speaker.interactive.break_off(RuntimeError("leaving"))
    assert speaker.told == ["abc:a", "abc:RuntimeError('leaving')"]
    assert not speaker.interactive._running
