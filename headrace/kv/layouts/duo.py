"""Heads that look far back keep everything; the others a sink and a window, in a group of their own.

Paper   https://arxiv.org/abs/2410.10819 (DuoAttention); https://arxiv.org/abs/2407.15891 (RazorAttention: its test
        needs no data)
Idea    Some heads retrieve, from anywhere in the text; most attend to the first tokens and to the last ones. Two groups
        per model, with block tables of different lengths: memory of a long text is that of the heads that retrieve.
Trades  Static, so nothing is computed while it runs. A head judged wrongly forgets what somebody asks for.
Differs Heads are chosen by a profile that `headrace profile` makes from repeated random tokens, not by training. Layers
        with windows of their own keep these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec
from headrace.kv.heads import read_profile, split_heads
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Duo:
    """Two groups, by head."""

    card: ClassVar[Card] = Card(
        slot="kv-layout",
        exact="lossy",
        paper="https://arxiv.org/abs/2410.10819",
        recordable=True,
        artifact="a profile of the model's heads: headrace profile --model DIR --out FILE",
    )
    profile: str
    """File that `headrace profile` wrote."""
    share: float = 0.25
    """Of the kv heads of layers that see everything: those that score highest keep everything."""
    sink: int = 4
    window: int = 252
    """Tokens that the others keep."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.sink < 0 or self.window < 1:
            raise ValueError(f"share={self.share} must be from 0 to 1, window={self.window} at least 1")

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        scores = read_profile(self.profile, architecture)
        near = GroupSpec("near", (), self.window, self.sink)
        return split_heads(architecture, scores, self.share, near)
