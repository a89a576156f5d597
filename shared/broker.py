"""Celery on Redis as a carrier of hints: "there is work for this queue".

A hint may be lost, doubled or late without harm, since Postgres is the queue and workers look at it by themselves every
two seconds. So nothing here waits for Redis, and nothing fails when Redis is away.
"""

import threading
from collections.abc import Iterable

from celery import Celery
from kombu import Queue as CeleryQueue

from shared.observability import get_logger
from shared.queues import HINT_TASK, Queue
from shared.settings import Settings

log = get_logger(__name__)

#: Hints that nobody took for this long are dropped.
HINT_SECONDS = 30

#: With so many hints waiting in a queue, one more says nothing new.
ENOUGH_HINTS = 32

#: Without these a half-open connection hangs a worker for minutes.
TRANSPORT_OPTIONS = {
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


class Broker(Celery):  # type: ignore[misc]  # Celery is untyped
    """The Celery application, with the thread that sends hints."""

    def __init__(self, url: str) -> None:
        super().__init__("trivium", broker=url, set_as_current=False)
        self.conf.update(
            accept_content=["json"],
            task_serializer="json",
            task_ignore_result=True,
            result_backend=None,
            task_acks_late=False,
            task_queues=[CeleryQueue(queue.value) for queue in Queue],
            task_create_missing_queues=False,
            worker_prefetch_multiplier=1,
            worker_disable_prefetch=True,
            worker_enable_remote_control=False,
            worker_send_task_events=False,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            broker_transport_options=TRANSPORT_OPTIONS,
        )
        self.sender = _HintSender(self)


def make_broker(settings: Settings) -> Broker:
    """The Celery application of this process. Connects to nothing."""
    return Broker(settings.redis_url.get_secret_value())


def send_hints(app: Broker, queues: Iterable[Queue]) -> None:
    """Says that these queues have work. Returns at once; never raises. Call it after the commit."""
    app.sender.add(queues)


class _HintSender:
    """Sends hints from a thread of its own; those that pile up while it is busy become one per queue."""

    def __init__(self, app: Celery):
        self._app = app
        self._pending: set[Queue] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, queues: Iterable[Queue]) -> None:
        with self._changed:
            self._pending.update(queues)
            if self._thread is None and self._pending:
                self._thread = threading.Thread(target=self._run, name="hints", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending:
                    self._changed.wait()
                batch, self._pending = self._pending, set()
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with Redis, the sweep hints again
                log.warning("hint not sent", error=str(error), queues=sorted(batch))

    def _send(self, queues: set[Queue]) -> None:
        with self._app.connection_for_write() as connection:
            channel = connection.default_channel
            for queue in sorted(queues):
                if channel.client.llen(queue.value) < ENOUGH_HINTS:
                    self._app.send_task(
                        HINT_TASK, queue=queue.value, connection=connection, retry=False, expires=HINT_SECONDS
                    )
