"""Heads that look far back keep everything; the others a sink, a window, and one token in the place of all that left.

Paper   https://arxiv.org/abs/2407.15891 (RazorAttention)
Idea    Most heads attend to the first tokens and to the last ones, but what lies between draws some weight. Its keys
        and its values are averaged into one compensation token, which counts as often as tokens went into it: its score
        is the mean key's, plus the log of their number.
Trades  As duo: static, and a head judged wrongly forgets what somebody asks for. Beside it one record of two numbers
        per channel, and the score of one more token. On the model in the box, with an eighth of the heads kept and a
        window of 144 tokens: 0.003 bits per byte more than with everything, where duo has 0.025 (8 texts of 2,047).
Differs Heads are chosen by kv head, from a profile in which echo and induction count alike; the window does not grow
        with the text, and moves by whole blocks, so that what a position reads does not depend on how its prompt was
        cut. Layers with windows of their own keep these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.kernels.attention import Queries, State
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.heads import read_profile, split_heads
from headrace.kv.summary import ReadTokens, Records, check_blocks
from headrace.slots import Card
from headrace.types import Fold, Reads


@dataclass(frozen=True, kw_only=True)
class Razor:
    """Two groups, by head, one of them with a compensation token."""

    card: ClassVar[Card] = Card(
        slot="kv-layout",
        exact="lossy",
        paper="https://arxiv.org/abs/2407.15891",
        artifact="a profile of the model's heads: headrace profile --model DIR --out FILE",
    )
    profile: str
    """File that `headrace profile` wrote."""
    share: float = 0.25
    """Of the kv heads of layers that see everything: those that score highest keep everything."""
    sink: int = 64
    """First tokens that the others keep: whole blocks."""
    window: int = 256
    """Last tokens that they keep, at most: whole blocks."""
    block: int = 64
    """Tokens that leave the window together: a power of two."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be from 0 to 1")
        check_blocks(self.block, self.sink, self.window)

    def groups(self, architecture: Architecture) -> tuple[GroupSpec, ...]:
        scores = read_profile(self.profile, architecture)
        near = GroupSpec("near", (), self.window, self.sink, summary=Mean(self.block))
        return split_heads(architecture, scores, self.share, near)


@dataclass(frozen=True)
class Mean:
    """The sums of keys and of values that left; see headrace.kv.summary."""

    block: int
    asks: ClassVar[bool] = False

    def record_bytes(self, member: Member, dtype: torch.dtype) -> int:
        return 2 * len(member.kv_heads) * member.head_size * _wide(dtype).itemsize

    def start(self, group: GroupSpec, records: Records, dtype: torch.dtype) -> _Live:
        return _Live(group, records, _wide(dtype))


class _Live:
    """See LiveSummary. A layer's part of a record is [key|value][kv head][H]: sums, in the order of the blocks."""

    def __init__(self, group: GroupSpec, records: Records, wide: torch.dtype) -> None:
        self._group, self._records, self._wide = group, records, wide
        self._shapes = {member.layer: (2, len(member.kv_heads), member.head_size) for member in group.members}

    def merge(
        self, arena_PX: Tensor, layer: int, fold: Fold, read: ReadTokens, queries: Queries | None
    ) -> None:
        assert self._group.window is not None
        k_LGH, v_LGH = read(layer, fold.window_B, self._group.block, fold.end - self._group.window)
        sums_KGH = torch.stack((k_LGH.to(self._wide).sum(0), v_LGH.to(self._wide).sum(0)))
        if len(fold.before_B):
            sums_KGH += self._sums(arena_PX, layer, fold.before_B)[0]
        self._records.write(arena_PX, layer, fold.after_B, sums_KGH.flatten().view(torch.uint8))

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        q_TNH, _, scale, _, _ = queries
        out_TNH = torch.zeros_like(q_TNH, memory_format=torch.contiguous_format)
        lse_TN = torch.full(q_TNH.shape[:2], -torch.inf, dtype=self._wide, device=q_TNH.device)
        rows = [row for run in reads.runs for row in range(run.first_row, run.end_row)]
        runs = [i for i, run in enumerate(reads.runs) for _ in range(run.first_row, run.end_row)]
        left_W = lse_TN.new_tensor([self._group.left(run.start + self._group.block) for run in reads.runs])
        means_WKGH = self._sums(arena_PX, layer, reads.pages_B) / left_W[:, None, None, None]
        k_RG1H, v_RG1H = means_WKGH[runs].unsqueeze(3).unbind(1)
        q_RGEH = q_TNH[rows].to(self._wide).unflatten(1, (k_RG1H.shape[1], -1))  # E query heads of a kv head
        scores_RGE = (q_RGEH * k_RG1H).sum(-1) * scale + left_W[runs, None, None].log()
        out_TNH[rows] = v_RG1H.expand_as(q_RGEH).flatten(1, 2).to(q_TNH.dtype)
        lse_TN[rows] = scores_RGE.flatten(1)
        return State(out_TNH, lse_TN)

    def _sums(self, arena_PX: Tensor, layer: int, pages_B: Tensor) -> Tensor:
        """[records, 2, G, H]: of the records in these pages."""
        found_WX = self._records.read(arena_PX, layer, pages_B)
        return found_WX.contiguous().view(self._wide).unflatten(1, self._shapes[layer])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
