"""First come, first served, one iteration at a time; every prompt runs whole in the step that admits it.

Paper   https://www.usenix.org/conference/osdi22/presentation/yu (Orca: iteration-level scheduling)
Idea    Sequences join and leave the batch at every step instead of at every batch, so none waits for the longest.
Trades  Best time to first token of the newcomer; everybody who is decoding stalls while a long prompt runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.schedule.admission import Ledger
from headrace.schedule.queues import Budget, View
from headrace.slots import Card
from headrace.types import StepPlan


@dataclass(frozen=True, kw_only=True)
class Orca:
    """Whole prompts, in order of arrival."""

    card: ClassVar[Card] = Card(
        slot="policy",
        exact="bits",
        paper="https://www.usenix.org/conference/osdi22/presentation/yu",
        gives=("whole_prompts",),
    )

    @property
    def longest_span(self) -> None:
        return None

    def plan(self, view: View, budget: Budget) -> StepPlan:
        ledger = Ledger(view, budget)
        for seq in view.running:
            if ledger.runs(seq):
                ledger.run(seq, seq.length)
        for seq in view.candidates:
            if not ledger.admit(seq, seq.length, chunk=seq.length):
                break
        return ledger.plan("orca")
