"""Keeps the first few tokens and the last ones: text without end in constant memory.

Paper   https://arxiv.org/abs/2309.17453 (StreamingLLM)
Idea    Softmax must put its weight somewhere: heads with nothing to look at put it on the first tokens. A window alone
        breaks the model; with `sink` of them kept, it goes on for as long as one likes.
Trades  Whatever left the window is forgotten: nothing is found in the middle of a long text.
Differs Positions stay what they are; the paper renumbers what is kept, to go beyond the trained context as well. Layers
        with a sliding window of their own keep the smaller of both, without a sink, as they were trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headrace.kv.groups import GroupSpec
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """A sink and a window."""

    card: ClassVar[Card] = Card(
        slot="kv-keeper", exact="lossy", paper="https://arxiv.org/abs/2309.17453", recordable=True
    )
    sink: int = 4
    """First tokens that stay."""
    window: int = 1020
    """Last tokens that stay."""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1:
            raise ValueError(f"sink={self.sink} must not be below 0, and window={self.window} at least 1")

    def limit(self, group: GroupSpec) -> GroupSpec:
        if group.window is not None:
            return replace(group, window=min(group.window, self.window))
        return replace(group, window=self.window, sink=self.sink)
