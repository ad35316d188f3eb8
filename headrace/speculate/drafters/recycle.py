"""Guesses that the likeliest successors of a token are those of the last time: a tree of them, from a table.

Paper   https://arxiv.org/abs/2408.08696 (Token Recycling)
Idea    Each row of logits, of tokens that came and of guesses that were wrong, says what the model holds likely after
        that token. The best `top` are kept per token, the newest replacing those before; from the last token, a tree of
        successors of successors is grown, the likelier wider and deeper.
Trades  No model, no training, no text that repeats: a table of 4 * top bytes per token of the vocabulary, 4 MB for
        128,000. Looks one token back only. A row of the tree costs as much as any other: pays where rows are cheap.
Differs The shape of the tree is not listed but computed: a guess is worth the product of what the ranks on its path are
        worth, and the best come first, so that any number of them is a tree. 80 of them have the paper's levels within
        2 guesses. Rows of a prompt's inside are not seen: their logits are not computed.
Tenants The table outlives sequences, and tells from how many tokens come at once what others were told. So requests
        with a salt share one only with their like; the last 8 salts have one.
"""

from __future__ import annotations

import functools
import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.slots import Card
from headrace.speculate.second import Open
from headrace.speculate.tree import Draft
from headrace.types import Sequence

TABLES = 8
"""Salts that have a table at once: the others begin anew."""
DEPTH = 6
"""Longest path of a tree."""
_WORTH, _FALL = 0.4, 1.8  # of the likeliest successor, and how fast those after it are worth less
_NONE = -1


@dataclass(frozen=True, kw_only=True)
class Recycle:
    """Successors of successors."""

    card: ClassVar[Card] = Card(slot="drafter", exact="bits", paper="https://arxiv.org/abs/2408.08696")
    top: int = 8
    """Successors that are kept of a token."""
    guesses: int = 80
    """Most guesses of a tree; the draft budget allows fewer."""

    def __post_init__(self) -> None:
        if not 1 <= self.top <= 32 or not 1 <= self.guesses <= 256:
            raise ValueError(f"top={self.top} must be 1 to 32, and guesses={self.guesses} 1 to 256")

    def start(self, open_model: Open, laws: bool) -> LiveRecycle:
        return LiveRecycle(self.top, self.guesses)


class LiveRecycle:
    """See LiveDrafter."""

    def __init__(self, top: int, guesses: int) -> None:
        self._top, self._shape = top, shape(guesses, top)
        self._tables: OrderedDict[str, Tensor] = OrderedDict()
        """Salt -> [V, top] int32: the likeliest successors of each token, best first; -1 for nothing yet."""

    def propose(self, seq: Sequence, room: int, depth: int) -> Draft:
        """See the contract."""
        table_VK = self._tables.get(seq.request.salt)
        if table_VK is None:
            return Draft()
        tokens, parents = list[int](), list[int]()
        placed: dict[int, int] = {-1: -1}  # number in the shape -> number in the draft
        levels, known = {-1: 0}, dict[int, list[int]]()
        for node, (parent, rank) in enumerate(self._shape):
            if len(tokens) == room:
                break
            if parent not in placed or levels[parent] == depth:
                continue
            last = tokens[placed[parent]] if parent >= 0 else seq.tokens[-1]
            if last not in known:
                known[last] = table_VK[last].tolist()
            if known[last][rank] == _NONE:
                continue
            placed[node], levels[node] = len(tokens), levels[parent] + 1
            parents.append(placed[parent])
            tokens.append(known[last][rank])
        return Draft(tuple(tokens), tuple(parents))

    def learn(self, seq: Sequence, tokens: tuple[int, ...], logits_RV: Tensor) -> None:
        """See the contract. Of rows of the same token the last one stays."""
        salt, vocab = seq.request.salt, logits_RV.shape[1]
        if salt not in self._tables:
            self._tables[salt] = torch.full((vocab, self._top), _NONE, dtype=torch.int32)
        self._tables.move_to_end(salt)
        if len(self._tables) > TABLES:
            self._tables.popitem(last=False)
        count = min(self._top, vocab)
        rows = {token: row for row, token in enumerate(tokens)}
        best_RK = logits_RV[list(rows.values())].topk(count).indices.to("cpu", torch.int32)
        self._tables[salt][list(rows), :count] = best_RK

    def forget(self, seq: int) -> None:
        """What was learnt stays."""


@functools.cache
def shape(guesses: int, top: int) -> tuple[tuple[int, int], ...]:
    """(number of the guess before it or -1, rank among that one's successors) of each guess, best first."""
    worths = [_WORTH * (rank + 1) ** -_FALL for rank in range(top)]
    found: list[tuple[int, int]] = []
    waiting = [(-worth, -1, rank, 1) for rank, worth in enumerate(worths)]
    while waiting and len(found) < guesses:
        negative, parent, rank, level = heapq.heappop(waiting)
        found.append((parent, rank))
        if level < DEPTH:
            for below, worth in enumerate(worths):
                heapq.heappush(waiting, (negative * worth, len(found) - 1, below, level + 1))
    return tuple(found)
