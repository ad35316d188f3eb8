"""Guesses that what followed the last few tokens before follows them again: copies from the prompt and the answer.

Paper   https://arxiv.org/abs/2502.08923 (CopySpec); https://arxiv.org/abs/2304.04487 (LLMA, copying from references)
Idea    Edits, summaries and code repeat long stretches of what was there. A table knows where each run of `gamma`
        tokens was last seen; if the newest run is in it, what came after is the guess.
Trades  No model and no training: a look-up per step, a table entry per token. What repeats nothing gets no guesses.
Differs The paper copies from the first occurrence; here from the latest, which an edit more likely goes on from. A
        copy that reaches the end of the text goes on with itself, so that loops are guessed, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from headrace.slots import Card
from headrace.speculate.second import Open
from headrace.speculate.tree import Draft
from headrace.types import Sequence as Seq


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    """Copies."""

    card: ClassVar[Card] = Card(slot="drafter", exact="bits", paper="https://arxiv.org/abs/2502.08923")
    gamma: int = 3
    """Tokens that must be the same for a copy to begin."""
    length: int = 10
    """Most tokens of a guess."""

    def __post_init__(self) -> None:
        if not 1 <= self.gamma <= 64 or not 1 <= self.length <= 64:
            raise ValueError(f"gamma={self.gamma} and length={self.length} must be between 1 and 64")

    def start(self, open_model: Open, laws: bool) -> _Copies:
        return _Copies(self.gamma, self.length)


@dataclass
class _Seen:
    """Where runs of tokens of one sequence were last seen."""

    after: dict[int, int] = field(default_factory=dict)
    """Hash of a run -> place of the token after it. Two runs of one hash cost a wrong guess, no more."""
    stop: int = 0
    """Runs that end before this place are in it."""


class _Copies:
    def __init__(self, gamma: int, length: int) -> None:
        self._gamma, self._length = gamma, length
        self._seen: dict[int, _Seen] = {}

    def propose(self, seq: Seq, room: int, depth: int) -> Draft:
        """See the contract."""
        return Draft(self.copied(seq.id, seq.tokens, min(room, depth)))

    def copied(self, seq: int, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """At most `room` tokens that followed the newest ones when they were last seen."""
        seen = self._seen.setdefault(seq, _Seen())
        for end in range(max(seen.stop, self._gamma), len(tokens)):
            seen.after[self._run(tokens, end)] = end
        seen.stop = len(tokens)
        if len(tokens) < self._gamma:
            return ()
        first = seen.after.get(self._run(tokens, len(tokens)))
        return () if first is None else _copy(tokens, first, min(self._length, room))

    def learn(self, seq: Seq, tokens: tuple[int, ...], logits_RV: Tensor) -> None:
        """Nothing to learn."""

    def forget(self, seq: int) -> None:
        """See the contract."""
        self._seen.pop(seq, None)

    def _run(self, tokens: Sequence[int], end: int) -> int:
        return hash(tuple(tokens[end - self._gamma : end]))


def _copy(tokens: Sequence[int], first: int, count: int) -> tuple[int, ...]:
    """Tokens from `first` on; beyond the last one, those of the copy."""
    copy = list(tokens[first : first + count])
    while len(copy) < count:
        copy.append(copy[len(copy) - (len(tokens) - first)])
    return tuple(copy)
