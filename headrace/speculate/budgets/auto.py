"""Checks a guess while it pays: as long as one more row brings more tokens per second than the step has without it.

Paper   https://arxiv.org/abs/2406.14066 (SmartSpec, goodput as the measure); https://arxiv.org/abs/2410.10347 (a draft
        length by acceptance and cost)
Idea    Two things are learnt from every step: how long a step of so many rows takes, and how often each sequence's
        guesses are right. With p for the share of right ones, the k-th guess is kept with p^k. It is worth its row if
        (tokens + p^k) / time(rows + 1) is more than tokens / time(rows). And it keeps an account of what guessing has
        gained and lost beside steps without it, in seconds: what is lost at the start is bounded, and later a small
        share of the time.
Trades  On text that cannot be guessed it falls silent, but for a try now and then.
Differs Times are measured as the engine runs, not modelled: rows that never occurred are interpolated. Of a tree the
        levels count as guesses, though its rows are more: its share of right ones is that of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headrace.slots import Card
from headrace.speculate.budgets import Checked

MOST_ROWS = 64
"""Steps of more rows are no decoding steps, and not timed."""
MOST_PATIENCE = 16
"""Times `retry`: a drafter that has fallen far behind the text pays for each try with reading all of it."""
_TIME_SHARE, _RIGHT_SHARE = 0.1, 0.1  # how much one more reading counts
_UNSEEN_ROW = 0.03  # what a row adds to a step's time, as long as nobody has seen it
_MOST = 32  # tokens of a guess that are thought about
_FIRST = 0.6  # share of right guesses, of a sequence that has made none
_START, _MOST_CREDIT = 3, 32  # steps that may be lost at the start, and that gains make up for at most
_LOSS = 0.02  # share of the time that may be lost after that


@dataclass(frozen=True, kw_only=True)
class Auto:
    """As many as pay."""

    card: ClassVar[Card] = Card(slot="draft-budget", exact="bits", paper="https://arxiv.org/abs/2406.14066")
    retry: int = 96
    """Steps after which a sequence that has fallen silent tries a guess again: twice as many after each try that was
    wrong, whoever's it was, up to 16 times."""

    def __post_init__(self) -> None:
        if self.retry < 1:
            raise ValueError(f"retry={self.retry} must be at least 1")

    def start(self) -> LiveAuto:
        return LiveAuto(self.retry)


@dataclass
class _Sequence:
    right: float
    """Share of guesses that were, the newest counting most."""
    silent: int = 0
    """Steps since it was allowed a guess."""
    trying: bool = False
    """Whether the last one was a try after silence."""


class Times:
    """Seconds of a step by its rows: a running mean of each, and straight lines between."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        self._table: list[float] = []  # by rows, from 0 on; made anew after each reading

    def add(self, rows: int, seconds: float) -> None:
        """One more step."""
        before = self._seen.get(rows)
        bounded = seconds if before is None else min(seconds, 2 * before)  # something else had the processor
        self._seen[rows] = bounded if before is None else before + _TIME_SHARE * (bounded - before)
        self._table = []

    def __call__(self, rows: int) -> float:
        """What a step of so many rows takes, at most MOST_ROWS; of one row more at least as much."""
        if not self._table:
            self._table = [self._between(r) for r in range(MOST_ROWS + 1)]
        return self._table[rows]

    def _between(self, rows: int) -> float:
        below = max((r for r in self._seen if r <= rows), default=None)
        above = min((r for r in self._seen if r >= rows), default=None)
        if above is None:
            start, first = (0, 1.0) if below is None else (below, self._seen[below])
            return first * (1 + _UNSEEN_ROW * (rows - start))
        if below is None:  # as cheap as it could be, so that it is tried
            return self._seen[above] * rows / above
        share = (rows - below) / (above - below) if above > below else 0.0
        return self._seen[below] + share * max(0.0, self._seen[above] - self._seen[below])


class LiveAuto:
    """See LiveBudget."""

    def __init__(self, retry: int) -> None:
        self._retry = self._patience = retry
        self._times = Times()
        self._right = _FIRST  # of all sequences: what a new one begins with
        self._sequences: dict[int, _Sequence] = {}
        self._tokens = 1  # of the step under way, without guesses
        self._credit: float | None = None
        """Seconds that guessing may lose; None before the first step without it, whose time is what it is held to."""

    def room(self, seq: int, rows: int, sequences: int) -> int:
        """See the contract."""
        self._tokens = sequences
        if rows >= MOST_ROWS or self._credit is None:  # beside a prompt, or at the very start
            return 0
        state = self._sequences.setdefault(seq, _Sequence(self._right))
        count = self._worth(state.right, rows, sequences) if self._credit > 0 else 0
        state.silent = 0 if count else state.silent + 1
        state.trying = self._credit > 0 and state.silent >= self._patience
        if state.trying:
            state.silent, count = 0, 1
        return count

    def _worth(self, right: float, rows: int, sequences: int) -> int:
        """The number of guesses, of which so many are right, with which a step brings most tokens per second."""
        count, tokens, kept = 0, float(sequences), 1.0
        best = tokens / self._times(rows)
        for more in range(1, min(MOST_ROWS - rows, _MOST) + 1):  # not only the next: time may rise in steps
            kept *= right
            tokens += kept
            rate = tokens / self._times(rows + more)
            if rate > best:
                count, best = more, rate
        return count

    def observe(self, rows: int, seconds: float, checked: Sequence[Checked]) -> None:
        """See the contract."""
        if rows <= MOST_ROWS:
            self._times.add(rows, seconds)
            self._account(rows, min(seconds, 2 * self._times(rows)), checked)
        for seq, drafted, accepted, _ in checked:
            state = self._sequences.get(seq)
            if accepted:
                self._patience = self._retry
            elif state is not None and state.trying:
                self._patience = min(2 * self._patience, MOST_PATIENCE * self._retry)
            for hit in [1.0] * accepted + [0.0] * (accepted < drafted):
                self._right += _RIGHT_SHARE * (hit - self._right) / 4
                if state is not None:
                    state.right += _RIGHT_SHARE * (hit - state.right)

    def _account(self, rows: int, seconds: float, checked: Sequence[Checked]) -> None:
        """What a step gained, or lost, beside one without guesses; and what the time that has passed allows."""
        if self._credit is None:
            self._credit = None if checked else _START * seconds
            return
        plain = self._times(rows - sum(one.rows for one in checked))
        if checked:
            tokens = self._tokens + sum(one.accepted for one in checked)
            self._credit += plain * tokens / self._tokens - seconds
        self._credit = min(self._credit + _LOSS * seconds, _MOST_CREDIT * plain)

    def forget(self, seq: int) -> None:
        """See the contract."""
        self._sequences.pop(seq, None)
