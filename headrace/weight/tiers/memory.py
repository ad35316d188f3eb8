"""Every block in memory, all the time.

Paper   none: it is how models are run where they fit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from headrace.slots import Card
from headrace.weight.store import InMemory


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Nothing on disk."""

    card: ClassVar[Card] = Card(
        slot="weight-tier",
        exact="bits",
        paper="none: it is how models are run where they fit",
        recordable=True,
    )

    def start(self, sizes: Sequence[Sequence[int]], device: torch.device) -> InMemory:
        return InMemory(device)
