"""Prompts that are being made shorter, one after the other, some rows between two steps.

    asked for  -> its turn: a shrinker is shown what it looks at -> the tokens that stay take the prompt's place
                                                                    -> waits like any other

Rows are few while others run, so that no stream waits long. A request whose prompt itself is asked about, by its
log-probabilities or its embedding, keeps it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.forward.decoder import Decoder
from headrace.forward.probe import Probe
from headrace.schedule.queues import Queues
from headrace.text.shrinkers import Look, Shrinker, Shrinking
from headrace.types import Request, Status
from headrace.types import Sequence as Seq

ALONE, BESIDE = 512, 32
"""Rows between two steps: when nothing runs, and when something does."""


class _Work:
    """One prompt's shrinking: a probe, and who asked for it."""

    def __init__(self, seq: Seq, live: Shrinking, decoder: Decoder) -> None:
        self.request, self._live, self._decoder = seq.request.id, live, decoder
        self._adapter = seq.adapter
        self._probe: Probe | None = None

    def run(self, rows: int) -> Sequence[int] | None:
        """The places that stay, once they are known."""
        try:
            if self._probe is None:
                self._look(next(self._live))
                return None
            seen = self._probe.run(rows)
            if seen is not None:
                self._look(self._live.send(seen))
            return None
        except StopIteration as done:
            kept: Sequence[int] = done.value
            return kept

    def _look(self, look: Look) -> None:
        self._probe = Probe(self._decoder, look, self._adapter)


class Prompts:
    """Of one engine. Without a shrinker every prompt is whole at once."""

    def __init__(
        self, shrinker: Shrinker | None, decoder: Decoder, queues: Queues, start: Callable[[Seq], None]
    ) -> None:
        """start: told of a sequence whose prompt has changed, before it runs."""
        self._shrinker, self._decoder, self._queues, self._start = shrinker, decoder, queues, start
        self.pending: set[int] = set()
        """Sequences whose prompts are not made shorter yet: they cannot run."""
        self._work: _Work | None = None
        if shrinker is not None:  # refuses a model that it does not fit
            assert next(shrinker.shrink((), len(decoder.blocks)), None) is None, "there is nothing to look at"

    def add(self, seq: Seq) -> None:
        """A new one."""
        if self._shrinker is not None and _may_shrink(seq.request):
            self.pending.add(seq.id)

    def fork(self, parent: int, child: Seq) -> None:
        """It has its parent's tokens."""
        if parent in self.pending:
            self.pending.add(child.id)

    def forget(self, seq: int) -> None:
        """It has ended."""
        self.pending.discard(seq)

    def restart(self) -> None:
        """After a step that failed: what was begun is begun again."""
        self._work = None

    def work(self) -> None:
        """Some rows of the first prompt whose turn it is."""
        if not self.pending:
            self._work = None
            return
        wanted = [seq for seq in self._queues.admissible() if seq.id in self.pending]
        if self._work is not None and not any(seq.request.id == self._work.request for seq in wanted):
            self._work = None  # it was cancelled, or set aside
        if self._work is None and wanted:
            assert self._shrinker is not None
            live = self._shrinker.shrink(wanted[0].request.prompt, len(self._decoder.blocks))
            self._work = _Work(wanted[0], live, self._decoder)
        if self._work is not None:
            kept = self._work.run(BESIDE if self._queues.count(Status.RUNNING) else ALONE)
            if kept is not None:
                self._shorten(self._work.request, kept)
                self._work = None

    def _shorten(self, request: str, kept: Sequence[int]) -> None:
        """Every sample of the request reads these tokens alone."""
        for seq in [seq for seq in self._queues if seq.id in self.pending and seq.request.id == request]:
            assert not seq.num_generated and not seq.num_computed, "a prompt is shortened before it runs"
            seq.tokens[:] = [seq.request.prompt[place] for place in kept]
            seq.prompt_len = len(seq.tokens)
            self.pending.discard(seq.id)
            self._start(seq)


def _may_shrink(request: Request) -> bool:
    return request.pooling is None and request.params.prompt_logprobs is None
