"""What is known of one HTTP request when it has ended: its line in the log, its span, and its place in the metrics.

Never its prompt, its answer, or a key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.server.passes import Passes
    from headrace.server.service import Call

PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/metrics", "/live", "/version"})
"""What machines ask every few seconds: worth a line only when something is wrong."""
MAX_PATH_CHARS = 200
CANCELLED = 499
"""Status of an answer that nobody waits for."""


@dataclass
class Record:
    """Filled in while the request is under way."""

    id: str
    method: str
    path: str
    """Cut to MAX_PATH_CHARS: it is the client's text."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """Headers of W3C's trace context, if it came with one."""
    handler: str = "none"
    """The route, with placeholders."""
    status: int = 0
    """0 until the first byte of an answer."""
    call: Call | Passes | None = None
    """What the engine ran for it."""
    began: float = field(default_factory=time.perf_counter)
    began_ns: int = field(default_factory=time.time_ns)
    seconds: float = 0.0

    def end(self, scope: Mapping[str, Any]) -> None:
        """It has been answered, or nobody waits any more."""
        self.seconds = time.perf_counter() - self.began
        self.handler = getattr(scope.get("route"), "path", "none")

    @property
    def outcome(self) -> str:
        """completed, cancelled, rejected or failed."""
        if self.call is not None and self.call.watch.outcome:
            return self.call.watch.outcome
        if self.status in (0, CANCELLED):
            return "cancelled"
        if self.status == 500:
            return "failed"
        return "rejected" if self.status >= 400 else "completed"

    @property
    def routine(self) -> bool:
        """Whether it is a probe, or a file of the page, and went well."""
        return self.status < 400 and (
            self.path in PROBES or self.path == "/" or self.path.startswith("/page/")
        )

    def fields(self) -> dict[str, Any]:
        """For a line of JSON."""
        line: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status or None,
            "outcome": self.outcome,
            "total_s": round(self.seconds, 6),
        }
        if self.call is None:
            return line
        watch, usage = self.call.watch, self.call.usage
        line |= {"response_id": self.call.id, "model": self.call.model}
        line |= {"prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
        line |= {"dropped_tokens": usage.dropped_tokens} if usage.dropped_tokens else {}
        line |= {"completion_tokens": usage.completion_tokens}
        times = {"queue_s": watch.queued, "ttft_s": watch.ttft}
        return line | {name: seconds and round(seconds, 6) for name, seconds in times.items()}

    def text(self) -> str:
        """The same for people, in one line: what a client wrote cannot make another one."""
        path = self.path.encode("unicode_escape").decode()
        line = (
            f"{self.id} {self.method} {path} {self.status or '-'} {self.outcome} after {self.seconds:.3f} s"
        )
        if self.call is not None:
            usage, ttft = self.call.usage, self.call.watch.ttft
            line += f", {usage.prompt_tokens} + {usage.completion_tokens} tokens"
            line += "" if ttft is None else f", the first after {ttft:.3f} s"
        return line
