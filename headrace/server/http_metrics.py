"""Metrics of HTTP and of the two processes, under the names that dashboards know from other servers."""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.server.record import Record

_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
"""Others are "other": what a client makes up must not become a time series."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class HttpMetrics:
    """Requests by route, method and class of status, as prometheus-fastapi-instrumentator counts them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "HTTP requests by how they were answered.",
            ("handler", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From an HTTP request to the end of its answer.",
            ("handler", "method"),
            registry=registry,
            buckets=_SECONDS,
        )

    def request(self, record: Record) -> None:
        """One has ended."""
        method = record.method if record.method in _METHODS else "other"
        self._requests.labels(record.handler, method, f"{record.status // 100}xx").inc()
        self._seconds.labels(record.handler, method).observe(record.seconds)


class ProcessMetrics(Collector):
    """Memory, CPU time, open files and threads: process_* is the API process, headrace_engine_process_* the engine."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.engine: int | None = None
        """Process id, while there is an engine."""
        ProcessCollector(registry=registry)
        ProcessCollector("headrace_engine", pid=lambda: self.engine or "none", registry=registry)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Threads, which the library leaves out."""
        for prefix, process in (("", os.getpid()), ("headrace_engine_", self.engine)):
            try:
                threads = len(os.listdir(f"/proc/{process}/task"))
            except OSError:  # gone, or a system that tells otherwise
                continue
            yield GaugeMetricFamily(f"{prefix}process_threads", "Threads of the process.", threads)
