"""Slot `policy`: which tokens of which sequences run in the next step.

Add one: a file here with a frozen dataclass that has `card`, `longest_span` and `plan`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot
from headrace.types import StepPlan

if TYPE_CHECKING:
    from headrace.schedule.queues import Budget, View


class Policy(Protocol):
    """A pure function from a frozen view to a plan: no clocks, no tensors, no randomness, no state."""

    card: ClassVar[Card]

    @property
    def longest_span(self) -> int | None:
        """Most tokens of one span; None: whole prompts. Decides the longest request that a pool can hold."""
        ...

    def plan(self, view: View, budget: Budget) -> StepPlan:
        """At most one span per sequence, each starting where its sequence's computed tokens end.

        Never plans more pages than the view says are available once the paused sequences have let go, nor more than
        budget.max_seqs running sequences. While anything waits or runs, a plan runs or pauses at least one sequence.
        schedule/admission.py keeps these rules for you.
        """
        ...


SLOT = Slot(
    name="policy",
    asks="which tokens run in the next step",
    index={
        "orca": "headrace.schedule.policies.orca:Orca",
        "sarathi": "headrace.schedule.policies.sarathi:Sarathi",
    },
    default="sarathi",
)
