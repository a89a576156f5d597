"""The sweep's ticks: steps run when they are due, and what one of them raises is counted and ends nothing."""

from datetime import UTC, datetime, timedelta
from typing import cast

from prometheus_client import CollectorRegistry

from services.dispatcher.metrics import Metrics
from services.dispatcher.steps.context import SweepContext
from services.dispatcher.sweep import Step, tick
from shared.errors import UnavailableError

NOW = datetime(2026, 11, 23, tzinfo=UTC)
CONTEXT = cast("SweepContext", None)  # these steps ask for nothing


def outage(context: SweepContext, now: datetime) -> int:
    raise UnavailableError("storage is away")


def fault(context: SweepContext, now: datetime) -> int:
    raise ZeroDivisionError


def test_a_step_that_fails_holds_up_no_other_and_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    steps = [Step("outage", outage), Step("fault", fault), Step("works", lambda context, now: 3)]
    for second in range(2):
        assert tick(CONTEXT, steps, NOW + timedelta(seconds=second), metrics) == {"works": 3}
    assert registry.get_sample_value("trivium_swept_total", {"step": "works"}) == 6
    assert registry.get_sample_value("trivium_sweep_failures_total", {"step": "outage"}) == 2
    assert registry.get_sample_value("trivium_sweep_failures_total", {"step": "fault"}) == 2


def test_a_step_runs_when_it_is_due() -> None:
    ran: list[datetime] = []

    def note(context: SweepContext, now: datetime) -> int:
        ran.append(now)
        return 0

    steps = [Step("rare", note, timedelta(seconds=10))]
    for second in (0, 2, 9, 10, 11, 25):
        tick(CONTEXT, steps, NOW + timedelta(seconds=second), Metrics())
    assert [(time - NOW).total_seconds() for time in ran] == [0, 10, 25]
