"""Prometheus metrics: the requests of this process, and the queues and jobs as the tables show them. Counts only."""

import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared.db import Sessions
from shared.jobs.models import Job, Shard
from shared.jobs.registry import stranded_shards
from shared.jobs.states import ShardState
from shared.observability import get_logger
from shared.queues import Queue, Stage
from shared.schemas import JobStatus

log = get_logger(__name__)

_WAITING = (ShardState.READY, ShardState.BLOCKED, ShardState.LEASED)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Tables are read at most this often, however often the metrics are asked for: they need no key.
_FRESH_SECONDS = 2.0


class Metrics:
    """The registry of one gateway."""

    def __init__(self, sessions: Sessions):
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trivium_http_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "trivium_http_request_seconds", "Time until the answer began", ["method", "route"], registry=self._registry
        )
        self._lane_seconds = Histogram(
            "trivium_lane_seconds", "Time that interactive requests took", ["stage", "outcome"], registry=self._registry
        )
        self._registry.register(_Tables(sessions))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        method = method if method in _METHODS else "other"  # callers may send any word, and each would be a series
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def observe_lane(self, stage: Stage, outcome: str, seconds: float) -> None:
        """Counts one interactive request to a stage's workers; `outcome` is `ok` or an error's code."""
        self._lane_seconds.labels(stage, outcome).observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


class _Tables(Collector):
    """Depth and age of the queues and the jobs by status; left out while Postgres is away."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        return []  # without this, registering would ask the database

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._metrics, self._read_at = self._read(), time.monotonic()
            yield from self._metrics

    def _read(self) -> list[Metric]:
        try:
            with self._sessions() as session:
                return [*_queues(session), _stranded(session), _jobs(session)]
        except SQLAlchemyError as error:
            log.warning("metrics without tables", error=str(error))
            return []


def _queues(session: Session) -> tuple[Metric, Metric]:
    depth = GaugeMetricFamily("trivium_queue_shards", "Shards that have not ended", labels=["queue", "state"])
    age = GaugeMetricFamily("trivium_queue_oldest_seconds", "Age of the oldest ready shard", labels=["queue"])
    oldest = func.extract("epoch", func.clock_timestamp() - func.min(Shard.ready_at))
    rows = session.execute(
        select(Shard.queue, Shard.state, func.count(), oldest)
        .where(Shard.state.in_(_WAITING))
        .group_by(Shard.queue, Shard.state)
    )
    found = {(queue, state): (count, seconds) for queue, state, count, seconds in rows}
    for queue in Queue:
        for state in _WAITING:
            depth.add_metric([queue, state], found.get((queue, state), (0, 0))[0])
        age.add_metric([queue], float(found.get((queue, ShardState.READY), (0, 0))[1]))
    return depth, age


def _stranded(session: Session) -> Metric:
    what = "Ready shards that every live worker of the pool is too old for"
    metric = GaugeMetricFamily("trivium_queue_stranded_shards", what, labels=["queue"])
    counts = stranded_shards(session)
    for queue in Queue:
        metric.add_metric([queue], counts.get(queue, 0))
    return metric


def _jobs(session: Session) -> Metric:
    jobs = GaugeMetricFamily("trivium_jobs", "Jobs by status", labels=["status"])
    rows = session.execute(select(Job.status, func.count()).where(Job.deleted_at.is_(None)).group_by(Job.status))
    counts = {status: count for status, count in rows}  # noqa: C416  # a Row is a tuple only at run time
    for status in JobStatus:
        jobs.add_metric([status], counts.get(status, 0))
    return jobs
