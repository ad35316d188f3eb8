"""Which tokens of a sequence each layer has, where a prompt's tokens leave on the way up (Block.thinning).

    layers 0 ..   [ p0 p1 p2 p3 p4 p5 p6 p7 | g0 g1 ]       positions, as they lie
    a band above  [ p1 p4 p6 p7 | g0 | p3 g1 ]              p3 came back for g1; its state was parked below
    another       [ p4 p7 | g0 | g1 ]

A *band* is the layers from one thinning to the next. What it has of a sequence lies in the sequence's pages from their
start on, one after the other: first those of the prompt that stayed, then each later token behind those that came back
for it. So no token lies further back than its position, and the pages that positions need are enough.

A token that comes back sees the tokens of the prompt that stayed in the band before it, and itself. What is computed of
it is so a matter of the prompt alone, whoever called it: nothing of it has to be undone where a guess did.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from headrace.architecture import Thinning
from headrace.kernels.attention import Queries, State, merge
from headrace.types import Sequence, Span


class Band:
    """What one band has of one sequence."""

    def __init__(self, thinning: Thinning, prompt_len: int) -> None:
        self.returns = thinning.returns
        self.stay = max(1, round(thinning.share * prompt_len))
        """So many tokens of the prompt do."""
        self.places: list[int] = []
        """Positions, as they lie. The first `stay` of them rise."""
        self.ends: list[int] = []
        """How many lie there once the prompt's last token has run, and each one after it."""
        self.within: set[int] = set()
        """Those of the prompt among them."""
        self.parked: dict[int, Tensor] = {}
        """Position -> the token's state before the band, [D]: of those that left here, and before the prompt's last
        token has run, of all. Who comes back stays parked, as whoever called it may be undone."""

    def park(self, positions: Seq[int], x_KD: Tensor) -> None:
        """Keeps these tokens' states."""
        if not len(positions):
            return
        self.parked.update(zip(positions, x_KD.clone().unbind(0), strict=True))

    def states(self, positions: Seq[int]) -> Tensor:
        """[K, D]."""
        return torch.stack([self.parked[position] for position in positions])

    def settle(self, staying: list[int]) -> Tensor:
        """The prompt's last token has run: these stay, the others that are parked have left. Returns their states."""
        assert not self.ends and len(staying) == self.stay
        states_KD = self.states(staying)
        self.places, self.within, self.ends = list(staying), set(staying), [len(staying)]
        left = [position for position in self.parked if position not in self.within]
        # copied, so that nothing else stays in memory with them
        self.parked = dict(zip(left, self.states(left).unbind(0), strict=True)) if left else {}
        return states_KD

    def append(self, returning: Seq[int], position: int) -> None:
        """A token after the prompt has run, and these came back for it."""
        self.places += [*returning, position]
        self.within.update(returning)
        self.ends.append(len(self.places))

    def rewind(self, later: int) -> None:
        """To when `later` tokens after the prompt had run."""
        if len(self.ends) > later + 1:
            undone = self.places[self.ends[later] :]
            del self.places[self.ends[later] :], self.ends[later + 1 :]
            self.within.difference_update(undone)


class Present:
    """Of one sequence, from its admission until it lets go of its pages."""

    def __init__(self, seq: Sequence, thinnings: tuple[Thinning, ...], page_tokens: int) -> None:
        self.prompt_len, self.page_tokens = seq.prompt_len, page_tokens
        asked = seq.request.pooling is not None or seq.request.params.prompt_logprobs is not None
        self.whole = asked or any(seq.prompt_len < thinning.shortest for thinning in thinnings)
        """Whether every layer has every token: of a prompt that is short, or is itself asked about."""
        self.bands = () if self.whole else tuple(Band(thinning, seq.prompt_len) for thinning in thinnings)
        """Above the first one, which has every token."""

    def rewind(self, start: int) -> None:
        """A span begins here: what ran from there on did not count."""
        for band in self.bands:
            if band.ends:
                assert start >= self.prompt_len, "a prompt is thinned once"
                band.rewind(start - self.prompt_len)

    def within(self, band: int) -> Collection[int]:
        """Positions of the prompt that a band has; 0 is the first band."""
        return self.bands[band - 1].within if band else range(self.prompt_len)

    def lying(self, band: int, position: int) -> Seq[int]:
        """Positions that a band has up to this one, the prompt's last or later, as they lie; 0 is the first band."""
        if band == 0:
            return range(position + 1)
        own = self.bands[band - 1]
        return own.places[: own.ends[position + 1 - self.prompt_len]]


def begin_spans(spans: tuple[Span, ...], present: Mapping[int, Present]) -> tuple[Present, ...]:
    """Of the spans' sequences, as it was where these begin; () if every layer has every token."""
    found = tuple(present[span.seq] for span in spans) if present else ()
    for span, own in zip(spans, found, strict=False):
        own.rewind(span.start)
    return found


def with_themselves(state: State, queries: Queries, k_TGH: Tensor, v_TGH: Tensor, rows_K: Tensor) -> Tensor:
    """Attention's result, [T, N, H], with these rows' own keys and values added to what they read."""
    q_KNH, scale = queries.q_TNH[rows_K], queries.scale
    each = q_KNH.shape[1] // k_TGH.shape[1]
    k_KNH, v_KNH = (x_TGH[rows_K].repeat_interleave(each, 1) for x_TGH in (k_TGH, v_TGH))
    wide = state.lse_TN.dtype
    lse_KN = (q_KNH.to(wide) * k_KNH.to(wide)).sum(-1) * scale
    read = State(state.out_TNH[rows_K], state.lse_TN[rows_K])
    state.out_TNH[rows_K] = merge([read, State(v_KNH, lse_KN)]).out_TNH
    return state.out_TNH
