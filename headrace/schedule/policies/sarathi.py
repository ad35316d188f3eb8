"""Chunked prefill without stalls: every decode runs in every step, prompts get what is left of a token budget.

Paper   https://arxiv.org/abs/2403.02310 (Sarathi-Serve); https://arxiv.org/abs/2308.16369 (SARATHI)
Idea    A step that reads the weights for a few decodes can carry a chunk of a prompt almost for free, up to the point
        where arithmetic and not memory sets the pace. So a long prompt costs the others a little in many steps instead
        of one long stall.
Trades  The newcomer's first token comes later than if its prompt ran whole.
Differs from the paper: while nothing is decoding there is nobody to stall, and prompts get `idle` tokens per step;
        prompts always get a quarter of the budget, so that more decodes than `tokens` cannot starve them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.schedule.admission import Ledger
from headrace.schedule.queues import Budget, View
from headrace.slots import Card
from headrace.types import StepPlan


@dataclass(frozen=True, kw_only=True)
class Sarathi:
    """Stall-free batching under a token budget."""

    tokens: int = 32
    """Tokens per step, decodes included. Useful values lie where arithmetic overtakes memory: 8-32 on a CPU."""
    idle: int = 512
    """Tokens per step while nothing is decoding."""

    card: ClassVar[Card] = Card(
        slot="policy", exact="bits", paper="https://arxiv.org/abs/2403.02310", gives=("chunked_prefill",)
    )

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.idle < 1:
            raise ValueError(f"tokens={self.tokens} and idle={self.idle} must be at least 1")

    @property
    def longest_span(self) -> int:
        return max(self.tokens, self.idle)

    def plan(self, view: View, budget: Budget) -> StepPlan:
        ledger = Ledger(view, budget)
        for seq in view.running:
            if seq.remaining == 1 and ledger.runs(seq):
                ledger.run(seq, seq.length)
        decodes = ledger.num_tokens
        tokens = max(self.tokens, decodes + -(-self.tokens // 4)) if decodes else self.idle
        for seq in view.running:
            room = tokens - ledger.num_tokens
            if seq.remaining > 1 and ledger.runs(seq) and room > 0:
                ledger.run(seq, min(seq.length, seq.computed + room))
        for seq in view.candidates:
            room = tokens - ledger.num_tokens
            if room <= 0 or not ledger.admit(seq, min(seq.length, seq.computed + room), self.longest_span):
                break
        return ledger.plan("sarathi")
