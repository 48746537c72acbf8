"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

PREFIX = "pointadapterx_"
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server; each has a registry of its own, so that several can be in a process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(f"{PREFIX}requests", "Requests by path and status", ["path", "status"], registry=own)
        self.seconds = Histogram(
            f"{PREFIX}request_seconds",
            "Seconds from a request's beginning to its answer",
            ["path"],
            buckets=SECONDS,
            registry=own,
        )
        self.batches = Histogram(
            f"{PREFIX}batch_samples", "Samples that are computed together", buckets=SAMPLES, registry=own
        )
        self.mixed = Histogram(f"{PREFIX}batch_adapters", "Adapters that a batch is for", buckets=SAMPLES, registry=own)
        self.waiting = Gauge(f"{PREFIX}queue_requests", "Requests that wait or are computed", registry=own)
        self.waiting_bytes = Gauge(f"{PREFIX}queue_bytes", "Bytes of their bodies", registry=own)
        self.dropped = Counter(f"{PREFIX}dropped", "Requests whose client hung up", registry=own)
        self.residents = Gauge(f"{PREFIX}adapters_loaded", "Adapters in memory", registry=own)
        self.resident_bytes = Gauge(f"{PREFIX}adapters_bytes", "Bytes of adapters and backbones", registry=own)
        self.evictions = Counter(f"{PREFIX}adapter_evictions", "Adapters that made room for others", registry=own)

    def text(self) -> bytes:
        """All of them in Prometheus's format."""
        return generate_latest(self._registry)
