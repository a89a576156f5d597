"""What the dispatcher shows at `/metrics`: what its sweep did. The queues are measured by the gateway."""

from prometheus_client import CollectorRegistry, Counter, start_http_server


class Metrics:
    """The counters of one dispatcher process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        what = "Shards rescued, jobs published, orphans deleted and so on"
        self._swept = Counter("trivium_swept", what, ["step"], registry=self._registry)
        self._failed = Counter("trivium_sweep_failures", "Steps that failed", ["step"], registry=self._registry)

    def serve(self, port: int) -> None:
        """Answers `/metrics` on all addresses, in a thread."""
        start_http_server(port, registry=self._registry)

    def count(self, step: str, done: int) -> None:
        """Notes what a step of the sweep did."""
        self._swept.labels(step).inc(done)

    def fail(self, step: str) -> None:
        """Notes that a step failed."""
        self._failed.labels(step).inc()
