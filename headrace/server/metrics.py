"""Prometheus metrics, under our names and under vLLM's, so that dashboards made for it work.

Recorded in the API process only: the engine tells of every step. A request is counted once when it ends, by outcome:
received = completed + cancelled + rejected + failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from headrace.server.messages import Since, Stepped
from headrace.text.reply import Usage

OUTCOMES = ("completed", "cancelled", "rejected", "failed")
PREFIX, ALIAS = "headrace_", "vllm:"
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600,
)  # fmt: skip
_TOKENS = tuple(2**k for k in range(21))
_COUNTED = {
    "prompt_tokens": ("prompt_tokens", "Tokens of admitted prompts."),
    "cached_tokens": ("prefix_cache_hits", "Tokens of prompts that the prefix cache had."),
    "generated_tokens": ("generation_tokens", "Tokens generated."),
    "drafted_tokens": ("drafted_tokens", "Tokens guessed ahead."),
    "accepted_tokens": ("accepted_tokens", "Of these, right ones."),
    "recomputes": ("preemptions_recomputed", "Sequences paused by dropping their pages."),
    "swaps": ("preemptions_swapped", "Sequences paused by moving their pages."),
    "steps": ("steps", "Batches that the engine ran."),
}
"""Counter of the engine -> (metric, help)."""
_ALIASES = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_usage_ratio": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "prefix_cache_hits": "prefix_cache_hits",
    "prefix_cache_queries": "prefix_cache_queries",
    "preemptions": "num_preemptions",
    "samples_finished": "request_success",
    "ttft_seconds": "time_to_first_token_seconds",
    "itl_seconds": "inter_token_latency_seconds",
    "request_seconds": "e2e_request_latency_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
    "step_tokens": "iteration_tokens_total",
}
"""Ours -> vLLM's, both without prefix."""


class Metrics:
    """All metrics of one server."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._since = Since()
        counters = {name: self._counter(*about) for name, about in _COUNTED.items()}
        self._counters = counters
        self._queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for."
        )
        self._preemptions = self._counter("preemptions", "Sequences paused, in either way.")
        self.running = self._gauge("requests_running", "Sequences that run.")
        self.waiting = self._gauge("requests_waiting", "Sequences that wait.")
        self.kv_usage = self._gauge("kv_usage_ratio", "Share of the KV pool that living sequences hold.")
        self.up = self._gauge("engine_up", "1 if the engine takes requests.")
        self.restarts = self._gauge("engine_restarts", "Times that the engine was started again.")
        self.ended = self._counter("requests_ended", "Requests by how they ended.", "outcome")
        self.finished = self._counter("samples_finished", "Samples by why they ended.", "finished_reason")
        self.ttft = self._histogram("ttft_seconds", "From a request to its first token.")
        self.itl = self._histogram("itl_seconds", "Between two tokens of a sample.")
        self.latency = self._histogram("request_seconds", "From a request to its end.")
        self.step_seconds = self._histogram("step_seconds", "One batch.")
        self.step_tokens = self._histogram("step_tokens", "Tokens of one batch.", _TOKENS)
        self.prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_sizes = self._histogram(
            "request_generation_tokens", "Tokens of a request's answers.", _TOKENS
        )
        for outcome in OUTCOMES:
            self.ended.labels(model, outcome)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, ("model_name", *labels), registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        made = Gauge(PREFIX + name, text, ("model_name",), registry=self._registry)
        made.labels(self._model).set(0)
        return made

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(PREFIX + name, text, ("model_name",), registry=self._registry, buckets=buckets)

    def step(self, step: Stepped) -> None:
        """The engine has run a batch."""
        view, stats, model = step.view, step.view.stats, self._model
        new = self._since(stats.counters)
        for name, counter in self._counters.items():
            counter.labels(model).inc(getattr(new, name))
        self._queries.labels(model).inc(new.prompt_tokens)
        self._preemptions.labels(model).inc(new.recomputes + new.swaps)
        self.running.labels(model).set(stats.running)
        self.waiting.labels(model).set(stats.waiting + stats.swapped)
        self.kv_usage.labels(model).set(stats.kv_usage)
        if view.spans:
            self.step_seconds.labels(model).observe(view.seconds)
            self.step_tokens.labels(model).observe(sum(s.stop - s.start + s.draft for s in view.spans))

    def engine(self, up: bool, restarts: int) -> None:
        """How the engine process is."""
        self.up.labels(self._model).set(up)
        self.restarts.labels(self._model).set(restarts)

    def reject(self) -> None:
        """A request was answered with an error before it came to the engine."""
        self.ended.labels(self._model, "rejected").inc()

    def watch(self, prompts: int) -> Watch:
        """For one request that the engine has taken."""
        return Watch(self, self._model, prompts)

    def text(self) -> bytes:
        """What /metrics answers."""
        return prometheus_client.generate_latest(_Named(self._registry))


class Watch:
    """Times one request."""

    def __init__(self, metrics: Metrics, model: str, prompts: int) -> None:
        self._metrics, self._model = metrics, model
        self._began = time.perf_counter()
        self._last: dict[tuple[int, int], float] = {}
        self._first: list[float | None] = [None] * prompts

    def tokens(self, place: int, index: int, count: int) -> None:
        """`count` tokens of a sample came at once: they share the time since the last ones."""
        now = time.perf_counter()
        if self._first[place] is None:
            self._first[place] = now
            self._metrics.ttft.labels(self._model).observe(now - self._began)
        before = self._last.get((place, index))
        self._last[place, index] = now
        if before is not None:
            for _ in range(count):
                self._metrics.itl.labels(self._model).observe((now - before) / count)

    def finished(self, place: int, reason: str) -> None:
        """A sample has ended."""
        self._metrics.finished.labels(self._model, reason).inc()

    def end(self, outcome: str, usages: Iterable[Usage]) -> None:
        """The request has ended."""
        metrics, model = self._metrics, self._model
        metrics.ended.labels(model, outcome).inc()
        metrics.latency.labels(model).observe(time.perf_counter() - self._began)
        for usage in usages:
            metrics.prompt_sizes.labels(model).observe(usage.prompt_tokens)
            metrics.answer_sizes.labels(model).observe(usage.completion_tokens)


class _Named(CollectorRegistry):
    """A registry's metrics, and once more under vLLM's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._inner = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            yield metric
            alias = _ALIASES.get(metric.name.removeprefix(PREFIX))
            if alias is not None:
                yield _renamed(metric, ALIAS + alias)


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    copy.samples = [
        Sample(name + sample.name.removeprefix(metric.name), *sample[1:]) for sample in metric.samples
    ]
    return copy
