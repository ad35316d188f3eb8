"""How one request went: times, tokens and its end, told to the metrics as they happen.

began ---- queue ---- started ---- prefill ---- first token ---- decode ---- last token
                      '------------------ inference -----------------------'
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from headrace.server.client import Job
from headrace.text.reply import Usage

if TYPE_CHECKING:
    from headrace.server.metrics import Metrics


class Watch:
    """Of one HTTP request, which has one job per prompt. Times are in seconds of time.perf_counter."""

    def __init__(self, metrics: Metrics, jobs: Sequence[Job], began: float) -> None:
        self.outcome = ""
        """Empty until its end."""
        self._metrics, self._jobs = metrics, jobs
        self._began = began
        self._last: dict[tuple[int, int], float] = {}
        self._first: dict[int, float] = {}

    def tokens(self, place: int, index: int, count: int) -> None:
        """`count` tokens of a sample came at once: they share the time since the last ones."""
        now = time.perf_counter()
        if place not in self._first:
            self._first[place] = now
            self._metrics.observe("ttft_seconds", now - self._began)
        before = self._last.get((place, index))
        self._last[place, index] = now
        if before is not None:
            for _ in range(count):
                self._metrics.observe("itl_seconds", (now - before) / count)

    def finished(self, reason: str) -> None:
        """A sample has ended."""
        self._metrics.finish(reason)

    @contextlib.contextmanager
    def counted(self, usages: Callable[[], Sequence[Usage]]) -> Iterator[None]:
        """The request ends with the block, and is counted by how that ends. usages: what each of its jobs cost."""
        outcome = "cancelled"
        try:
            yield
            outcome = "completed"
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.end(outcome, usages())

    def end(self, outcome: str, usages: Sequence[Usage]) -> None:
        """The request has ended, and does so once; usages: what each of its jobs cost."""
        if self.outcome:
            return
        self.outcome = outcome
        self._metrics.end(outcome)
        self._metrics.observe("request_seconds", time.perf_counter() - self._began)
        for place, (job, usage) in enumerate(zip(self._jobs, usages, strict=True)):
            params = job.request.params
            self._metrics.observe("request_prompt_tokens", usage.prompt_tokens)
            self._metrics.observe("request_generation_tokens", usage.completion_tokens)
            self._metrics.observe("request_params_n", params.n)
            if params.max_tokens is not None:
                self._metrics.observe("request_params_max_tokens", params.max_tokens)
            self._phases(place, job, usage.completion_tokens - params.n)

    def _phases(self, place: int, job: Job, later: int) -> None:
        """`later`: tokens after the first of each sample."""
        first = self._first.get(place)
        if job.started is None:
            return
        self._metrics.observe("request_queue_seconds", job.started - self._began)
        if first is None:
            return
        last = max(at for (where, _), at in self._last.items() if where == place)
        self._metrics.observe("request_prefill_seconds", first - job.started)
        self._metrics.observe("request_decode_seconds", last - first)
        self._metrics.observe("request_inference_seconds", last - job.started)
        if later > 0:
            self._metrics.observe("request_tpot_seconds", (last - first) / later)

    @property
    def queued(self) -> float | None:
        """Until the first of its prompts ran."""
        started = [job.started for job in self._jobs if job.started is not None]
        return min(started) - self._began if started else None

    @property
    def ttft(self) -> float | None:
        """Until the first token."""
        return min(self._first.values()) - self._began if self._first else None
