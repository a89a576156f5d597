"""Requests to stop: signals, whichever thread the system gives them to, and what ends from within."""

import signal
import threading
from collections.abc import Iterator

import pytest

from shared.worker.stopping import StopRequests

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def requests() -> Iterator[StopRequests]:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield StopRequests()
    for signum, handler in zip(SIGNALS, before, strict=True):
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_that_another_thread_takes_is_heard(requests: StopRequests, signum: signal.Signals) -> None:
    """So it happens to a process that was frozen: the system gives the signal to a thread that is awake already."""
    requests.arm()
    threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signum)).start()
    assert requests.wait() == 0


def test_each_request_is_heard_once(requests: StopRequests) -> None:
    requests.arm()
    signal.raise_signal(signal.SIGTERM)
    requests.put(1)
    assert [requests.get(0.01) for _ in range(3)] == [0, 1, None]


def test_a_signal_during_the_start_ends_the_process(requests: StopRequests) -> None:
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 0
