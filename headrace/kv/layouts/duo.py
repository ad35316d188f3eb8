"""Heads that look far back keep everything; the others a sink and a window, in a group of their own.

Paper   https://arxiv.org/abs/2410.10819 (DuoAttention); https://arxiv.org/abs/2407.15891 (RazorAttention: its test
        needs no data)
Idea    Some heads retrieve, from anywhere in the text; most attend to the first tokens and to the last ones. Two groups
        per model, with block tables of different lengths: memory of a long text is that of the heads that retrieve.
Trades  Static, so nothing is computed while it runs. A head judged wrongly forgets what somebody asks for.
Differs Heads are chosen by a profile that `headrace profile` makes from repeated random tokens, not by training. Layers
        with windows of their own keep these. RazorAttention's compensation token is not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headrace.architecture import Architecture
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.heads import read_profile
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class Duo:
    """Two groups, by head."""

    card: ClassVar[Card] = Card(
        slot="kv-layout",
        exact="lossy",
        paper="https://arxiv.org/abs/2410.10819",
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
        far = [
            (layer, head)
            for layer, block in enumerate(architecture.blocks)
            if block.attention.window is None
            for head in range(block.attention.kv_heads)
        ]
        far.sort(key=lambda place: (-scores[place[0]][place[1]], place))
        chosen = set(far[: round(self.share * len(far))])
        parts: dict[tuple[int | None, int], list[Member]] = {}
        for layer, block in enumerate(architecture.blocks):
            attention = block.attention
            for head in range(attention.kv_heads):
                everything = attention.window is not None or (layer, head) in chosen
                key = (attention.window, 0) if everything else (self.window, self.sink)
                members = parts.setdefault(key, [])
                if members and members[-1].layer == layer:
                    members[-1] = replace(members[-1], kv_heads=(*members[-1].kv_heads, head))
                else:
                    members.append(Member(layer, (head,), attention.head_size))
        ordered = sorted(
            parts.items(), key=lambda item: (item[0][0] is not None, item[0][0] or 0, item[0][1])
        )
        return tuple(
            GroupSpec(_name(window, sink), tuple(members), window, sink)
            for (window, sink), members in ordered
        )


def _name(window: int | None, sink: int) -> str:
    return "full" if window is None else f"window{window}" + (f"+{sink}" if sink else "")
