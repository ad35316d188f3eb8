"""Turns: which model's turn it is, for every sequence of an engine with a switcher.

    read by the model whose turn it is -> its logits are heard -> it speaks: the token is chosen from them
                                                               -> or not: the sequence rests here, and the other model
                                                                  reads what it has not read yet

Requests that ask something of the large model itself are its own from start to end: with an adapter, for the embedding
or the log-probabilities of their prompt.
"""

from __future__ import annotations

from collections.abc import Set

from torch import Tensor

from headrace.errors import ConfigError
from headrace.forward.lane import Lane
from headrace.stats import Counters
from headrace.switch.switchers import State, Switcher
from headrace.types import Request, Sequence, Status

LARGE, SMALL = 0, 1
"""Places in an engine's lanes."""


class Turns:
    """Of one engine; without a switcher it is always the same model's turn."""

    def __init__(self, switcher: Switcher | None, lanes: list[Lane]) -> None:
        """lanes: the large model's, and with a switcher the small one's. Raises ConfigError if that one takes less."""
        self._switcher, self._lanes = switcher, lanes
        self._first = LARGE if switcher is None or switcher.init().large else SMALL
        self._states: dict[int, State] = {}
        self._heard: dict[int, State] = {}  # in this step, which may fail yet
        if switcher is not None and lanes[SMALL].context < lanes[LARGE].context:
            raise ConfigError(
                f"{switcher.model} takes texts of {lanes[SMALL].context} tokens, and the model beside it "
                f"{lanes[LARGE].context}: lower context to {lanes[SMALL].context}"
            )

    def add(self, seq: Sequence) -> None:
        """A new one."""
        if self._switcher is not None and _may_switch(seq.request):
            self._states[seq.id] = self._switcher.init()

    def fork(self, parent: int, child: int) -> None:
        """It goes on from where its parent is."""
        if parent in self._states:
            self._states[child] = self._states[parent]

    def forget(self, seq: int) -> None:
        """It has ended."""
        self._states.pop(seq, None)
        self._heard.pop(seq, None)

    def of(self, seq: int) -> int:
        """The lane whose turn it is."""
        return SMALL if seq in self._states and not self._states[seq].large else LARGE

    def first(self, seq: int) -> int:
        """The lane that reads its prompt first."""
        return self._first if seq in self._states else LARGE

    def away(self, lane: int) -> Set[int]:
        """Sequences that do not run in this lane now."""
        if self._switcher is None:
            return frozenset()
        if lane == LARGE:
            return {seq for seq in self._states if self.of(seq) != lane}
        book, engine = self._lanes[lane].queues, self._lanes[LARGE].queues
        return {
            seq.id
            for seq in book
            if self.of(seq.id) != lane or engine[seq.id].status in (Status.PAUSED, Status.HELD)
        }

    def beside(self) -> int:
        """How many sequences wait in the large lane and run in the small one."""
        if self._switcher is None:
            return 0
        large, small = self._lanes
        return sum(small.runs(seq.id) for seq in large.queues if seq.status is Status.WAITING)

    def enter(self, unready: Set[int]) -> None:
        """Sequences that may begin, and whose prompts will not change any more, get a place in the small lane."""
        if self._switcher is not None:
            small = self._lanes[SMALL]
            for seq in self._states.keys() - small.sequences.keys() - unready:
                if self._lanes[LARGE].queues[seq].status is not Status.HELD:
                    small.enter(self._lanes[LARGE].queues[seq])

    def speaks(self, seq: Sequence, logits_V: Tensor) -> bool:
        """Whether the next token is chosen from these logits, of the model whose turn it is."""
        if seq.id not in self._states:
            return True
        state = self._heard.get(seq.id) or self._states[seq.id]
        self._heard[seq.id] = heard = state.hear(logits_V)
        return heard.large == state.large

    def settle(self, seq: int, tokens: int, counters: Counters) -> bool:
        """The step is done, and brought the sequence so many tokens. Whether its turn is over here."""
        if seq not in self._states:
            return False
        heard, before = self._heard.pop(seq, None), self.of(seq)
        if before == SMALL:
            counters.second_tokens += tokens
        if heard is None:
            return False
        self._states[seq] = heard
        counters.switches += self.of(seq) != before
        return self.of(seq) != before

    def restart(self) -> None:
        """After a step that failed: nothing was heard."""
        self._heard.clear()


def _may_switch(request: Request) -> bool:
    return not request.adapter and request.pooling is None and request.params.prompt_logprobs is None
