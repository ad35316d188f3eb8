"""OpenTelemetry spans, one per request that the engine ran, with attributes as vLLM names them. The extra `otel`.

Nothing of OpenTelemetry is imported unless an endpoint is set. A span says how long what took, and what was asked of
the sampler; never what was said.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from headrace.errors import ConfigError
from headrace.server.record import Record

SPAN = "llm_request"
PATH = "/v1/traces"
"""Where a collector listens, unless the endpoint says otherwise."""
EXPORT_S = 5.0
"""How long a collector may take; what it does not take is dropped, and the log says so."""


class Tracer:
    """Sends spans to a collector, in a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: URL of an OTLP collector, over HTTP. Raises ConfigError."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"--otlp-traces-endpoint {endpoint!r} is no URL such as http://127.0.0.1:4318")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs OpenTelemetry, and {error.name} is missing: pip install 'headrace[otel]'"
            ) from None
        where = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + PATH
        service = os.environ.get("OTEL_SERVICE_NAME", "headrace")
        exporter = OTLPSpanExporter(endpoint=where, timeout=EXPORT_S)
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("headrace")
        self._parent = TraceContextTextMapPropagator().extract
        self._trace = trace

    def request(self, record: Record) -> None:
        """A request has ended; it has a span if the engine ran it."""
        if record.call is None:
            return
        span = self._tracer.start_span(
            SPAN,
            context=self._parent(dict(record.trace)),
            kind=self._trace.SpanKind.SERVER,
            start_time=record.began_ns,
            attributes=attributes(record),
        )
        if record.outcome == "failed":
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(record.began_ns + int(1e9 * record.seconds))

    def close(self) -> None:
        """Sends what is left; takes EXPORT_S at most."""
        self._provider.shutdown()


def attributes(record: Record) -> dict[str, Any]:
    """What a span says. Seconds; without those that are not known."""
    call = record.call
    assert call is not None
    params, usage, watch = call.params, call.usage, call.watch
    sampling = {name: getattr(params, name) for name in ("max_tokens", "temperature", "top_p", "n") if params}
    found = {
        "gen_ai.request.id": call.id,
        "gen_ai.response.model": call.model,
        **{f"gen_ai.request.{name}": value for name, value in sampling.items()},
        "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
        "gen_ai.usage.completion_tokens": usage.completion_tokens,
        "gen_ai.usage.num_sequences": call.num_sequences,
        "gen_ai.latency.time_in_queue": watch.queued,
        "gen_ai.latency.time_to_first_token": watch.ttft,
        "gen_ai.latency.e2e": record.seconds,
        "http.request.method": record.method,
        "http.route": record.handler,
        "http.response.status_code": record.status,
        "headrace.request_id": record.id,
        "headrace.outcome": record.outcome,
    }
    return {name: value for name, value in found.items() if value is not None}
