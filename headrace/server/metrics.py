"""Prometheus metrics, under our names and under vLLM's, so that dashboards made for it work.

Recorded in the API process only: the engine tells of every step. A request is counted once when it ends, by outcome:
received = completed + cancelled + rejected + failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from headrace.server.client import EngineClient, State
from headrace.server.http_metrics import HttpMetrics, ProcessMetrics
from headrace.server.messages import Since, Stepped
from headrace.server.record import Record

OUTCOMES = ("completed", "cancelled", "rejected", "failed")
PREFIX, ALIAS = "headrace_", "vllm:"
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600,
)  # fmt: skip
_TOKENS = tuple(2**k for k in range(21))
_COUNTED = {
    "prompt_tokens": ("prompt_tokens", "Tokens of admitted prompts."),
    "cached_tokens": ("prefix_cache_hits", "Tokens of prompts that the prefix cache had."),
    "dropped_tokens": ("dropped_tokens", "Tokens of prompts that a shrinker left out."),
    "generated_tokens": ("generation_tokens", "Tokens generated."),
    "drafted_tokens": ("drafted_tokens", "Tokens guessed ahead."),
    "accepted_tokens": ("accepted_tokens", "Of these, right ones."),
    "second_tokens": ("second_model_tokens", "Of the generated tokens, those of a switcher's second model."),
    "switches": ("model_switches", "Times that a sequence went from one model to the other."),
    "recomputes": ("preemptions_recomputed", "Sequences paused by dropping their pages."),
    "swaps": ("preemptions_swapped", "Sequences paused by moving their pages."),
    "demoted_pages": ("kv_tier_demoted_pages", "Pages that the KV pool gave up and a tier took."),
    "promoted_pages": ("kv_tier_promoted_pages", "Pages that came back from a tier."),
    "tier_written_bytes": ("kv_tier_written_bytes", "Bytes written to a tier."),
    "tier_read_bytes": ("kv_tier_read_bytes", "Bytes read from a tier."),
    "steps": ("steps", "Batches that the engine ran."),
}
"""Counter of the engine -> (metric, help)."""
_HISTOGRAMS = {
    "ttft_seconds": ("From a request to its first token.", _SECONDS),
    "itl_seconds": ("Between two tokens of a sample.", _SECONDS),
    "request_seconds": ("From a request to its end.", _SECONDS),
    "request_queue_seconds": ("From a request until its prompt runs.", _SECONDS),
    "request_prefill_seconds": ("From when its prompt runs to the first token.", _SECONDS),
    "request_decode_seconds": ("From the first token to the last.", _SECONDS),
    "request_inference_seconds": ("From when its prompt runs to the last token.", _SECONDS),
    "request_tpot_seconds": ("Between two tokens, the mean over a request.", _SECONDS),
    "step_seconds": ("One batch.", _SECONDS),
    "step_tokens": ("Tokens of one batch.", _TOKENS),
    "request_prompt_tokens": ("Tokens of a prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of a request's answers.", _TOKENS),
    "request_params_n": ("Samples that a request asks for.", _TOKENS[:8]),
    "request_params_max_tokens": ("Tokens that a request asks for at most.", _TOKENS),
}
"""Histogram -> (help, buckets)."""
_ALIASES = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_usage_ratio": "kv_cache_usage_perc",
    "cache_config_info": "cache_config_info",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "prefix_cache_hits": "prefix_cache_hits",
    "prefix_cache_queries": "prefix_cache_queries",
    "preemptions": "num_preemptions",
    "samples_finished": "request_success",
    "ttft_seconds": "time_to_first_token_seconds",
    "itl_seconds": "inter_token_latency_seconds",
    "request_seconds": "e2e_request_latency_seconds",
    "request_queue_seconds": "request_queue_time_seconds",
    "request_prefill_seconds": "request_prefill_time_seconds",
    "request_decode_seconds": "request_decode_time_seconds",
    "request_inference_seconds": "request_inference_time_seconds",
    "request_tpot_seconds": "request_time_per_output_token_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
    "request_params_n": "request_params_n",
    "request_params_max_tokens": "request_params_max_tokens",
    "step_tokens": "iteration_tokens_total",
    "lora_requests": "lora_requests_info",
}
"""Ours -> vLLM's, both without prefix."""
_GAUGES = {
    "requests_running": "Sequences that run.",
    "requests_waiting": "Sequences that wait.",
    "kv_usage_ratio": "Share of the KV pool that living sequences hold.",
    "engine_up": "1 if the engine takes requests.",
    "engine_restarts": "Times that the engine was started again.",
}


class Metrics:
    """All metrics of one server."""

    def __init__(self, model: str, *, lost: Callable[[], int] = lambda: 0, max_seqs: int = 0) -> None:
        """lost: how many lines of the log have been lost by now. max_seqs: of a batch; so many adapters, at most."""
        self._registry = CollectorRegistry()
        self._model = model
        self._since = Since()
        self._counters = {name: self._counter(*about) for name, about in _COUNTED.items()}
        self._queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for."
        )
        self._preemptions = self._counter("preemptions", "Sequences paused, in either way.")
        self._gauges = {name: self._gauge(name, text) for name, text in _GAUGES.items()}
        self._ended = self._counter("requests_ended", "Requests by how they ended.", "outcome")
        self._finished = self._counter("samples_finished", "Samples by why they ended.", "finished_reason")
        self._lost = self._counter("log_lines_lost", "Lines of the log that could not be written.")
        self._lost_now, self._lost_before = lost, 0
        self._histograms = {
            name: Histogram(PREFIX + name, text, ("model_name",), registry=self._registry, buckets=buckets)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._cache = Gauge(
            PREFIX + "cache_config_info",
            "1, with how the KV cache is laid out; block_size is in tokens.",
            ("model_name", "block_size", "num_blocks", "num_gpu_blocks", "enable_prefix_caching"),
            registry=self._registry,
        )
        self._adapters = Gauge(
            PREFIX + "lora_requests",
            "When adapters were last in use, in seconds since 1970, and which.",
            ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
            registry=self._registry,
        )
        self._max_seqs = max_seqs
        self._http, self._processes = HttpMetrics(self._registry), ProcessMetrics(self._registry)
        for outcome in OUTCOMES:
            self._ended.labels(model, outcome)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, ("model_name", *labels), registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        made = Gauge(PREFIX + name, text, ("model_name",), registry=self._registry)
        made.labels(self._model).set(0)
        return made

    def step(self, step: Stepped) -> None:
        """The engine has run a batch."""
        view, model = step.view, self._model
        new = self._since(view.stats.counters)
        for name, counter in self._counters.items():
            counter.labels(model).inc(getattr(new, name))
        self._queries.labels(model).inc(new.prompt_tokens)
        self._preemptions.labels(model).inc(new.recomputes + new.swaps)
        running, waiting = view.stats.running_adapters, view.stats.waiting_adapters
        if running or waiting:
            self._adapters.clear()
            self._adapters.labels(self._max_seqs, ",".join(running), ",".join(waiting)).set(time.time())
        if view.spans:
            self.observe("step_seconds", view.seconds)
            self.observe("step_tokens", sum(s.stop - s.start + s.draft for s in view.spans))

    def observe(self, name: str, value: float) -> None:
        """One more value of a histogram."""
        self._histograms[name].labels(self._model).observe(value)

    def finish(self, reason: str) -> None:
        """A sample has ended."""
        self._finished.labels(self._model, reason).inc()

    def end(self, outcome: str) -> None:
        """A request has ended, in one of OUTCOMES."""
        self._ended.labels(self._model, outcome).inc()

    def reject(self) -> None:
        """A request was answered with an error before it came to the engine."""
        self.end("rejected")

    def request(self, record: Record) -> None:
        """An HTTP request of any kind has ended."""
        self._http.request(record)

    def text(self, client: EngineClient) -> bytes:
        """What /metrics answers."""
        stats = client.view and client.view.stats
        now = {
            "requests_running": stats.running if stats else 0,
            "requests_waiting": stats.waiting + stats.swapped if stats else 0,
            "kv_usage_ratio": stats.kv_usage if stats else 0,
            "engine_up": client.state is State.READY,
            "engine_restarts": client.restarts,
        }
        for name, value in now.items():
            self._gauges[name].labels(self._model).set(value)
        if stats:
            pages, config = stats.pages, client.config
            self._cache.clear()
            self._cache.labels(self._model, config.page_tokens, pages, pages, config.prefix_cache).set(1)
        self._processes.engine = client.pid
        lost = self._lost_now()
        self._lost.labels(self._model).inc(lost - self._lost_before)
        self._lost_before = lost
        return prometheus_client.generate_latest(_Named(self._registry))


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
