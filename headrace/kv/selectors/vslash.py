"""While a prompt is computed, reads the columns and diagonals of attention that its last tokens put weight on.

Paper   https://arxiv.org/abs/2407.02490 (MInference, vertical-slash heads); https://arxiv.org/abs/2501.15383
        (Qwen2.5-1M)
Idea    Attention over a long prompt has two shapes: tokens that everybody looks at, and distances that everybody looks
        back. Both show in the rows of the last 64 tokens. So these are multiplied with all keys, columns and diagonals
        are summed, and every other row reads the best of both, by pages.
Trades  A long prompt's attention falls from its length squared to its length times what is read. What only a token in
        the middle would look for is not found by it. After the prompt everything is read.
Prompts What a row reads is chosen by the prompt's end: it must run in one step (--policy orca), and pages of its
        beginning would differ beside another end, so there is no prefix cache. The last 64 tokens read everything.
Differs Lines are as wide as a page. Which kind a head is and how many lines it gets is not calibrated: all heads have
        as many, and those that share a kv head the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels.attention import Queries
from headrace.kv.codecs import LiveCodec
from headrace.kv.groups import GroupSpec
from headrace.kv.selection import NO_CHOICE, Selecting
from headrace.slots import Card


@dataclass(frozen=True, kw_only=True)
class VSlash:
    """Columns and diagonals, per kv head."""

    card: ClassVar[Card] = Card(
        slot="kv-selector",
        exact="lossy",
        paper="https://arxiv.org/abs/2407.02490",
        needs=(("whole_prompts", "it looks at a prompt's last tokens first; use --policy orca"),),
        breaks=(
            ("prefix_cache", "what a prompt's beginning reads depends on its end; use --no-prefix-cache"),
            *NO_CHOICE,
        ),
    )
    answers: ClassVar[bool] = False
    vertical: int = 1024
    """Tokens of the columns."""
    slash: int = 1024
    """Tokens of the diagonals."""
    sink: int = 32
    """First tokens that are always read."""
    recent: int = 128
    """Distance up to which everything is read."""
    rows: int = 64
    """Positions that read the same pages."""
    spared: int = 64
    """Last tokens of a prompt: they read everything, and what they look at is read by the others."""

    def __post_init__(self) -> None:
        if min(self.vertical, self.slash, self.sink) < 0 or min(self.recent, self.rows, self.spared) < 1:
            raise ValueError(
                "vertical, slash and sink must not be below 0, and recent, rows and spared at least 1"
            )

    def kept(self, pages: int, page_tokens: int) -> int:
        tokens = self.vertical + self.slash + self.sink + self.recent + self.rows
        return min(pages, -(-tokens // page_tokens))

    def page_bytes(self, group: GroupSpec) -> int:
        return 0

    def start(self, group: GroupSpec, at: int, codec: LiveCodec) -> _Live:
        return _Live(self, codec)


class _Live:
    """See LiveSelector."""

    def __init__(self, options: VSlash, codec: LiveCodec) -> None:
        self._options, self._codec = options, codec

    def index(self, arena_PX: Tensor, layer: int, pages_P: Tensor, page_tokens: int) -> None:
        """Nothing is kept of a page."""

    def select(self, arena_PX: Tensor, layer: int, queries: Queries, selecting: Selecting) -> Tensor:
        assert selecting.tables_SB is not None
        masks = []
        for table, end in enumerate(selecting.prompt_ends):
            last = slice(end - self._options.spared, end)
            probes = queries._replace(q_TNH=queries.q_TNH[last], positions_T=queries.positions_T[last])
            length = int(probes.positions_T[-1]) + 1
            k_LGH, _ = self._codec.read(arena_PX, layer, selecting.tables_SB[table], length)
            weights_GTL = attention_of(probes, k_LGH)
            own_C3 = selecting.sets_C6[selecting.sets_C6[:, 2] == table][:, [0, 1, 3]]
            masks.append(self._mask(weights_GTL, own_C3, selecting))
        return torch.cat(masks, 1)

    def _mask(self, weights_GTL: Tensor, sets_C3: Tensor, selecting: Selecting) -> Tensor:
        """[G, C, B] for one sequence's sets: (first row, end row, stop) each."""
        assert selecting.tables_SB is not None
        size, B = selecting.page_tokens, selecting.tables_SB.shape[1]
        b_B = torch.arange(B, device=weights_GTL.device)
        stop_C = sets_C3[:, 2]
        start_C = stop_C - (sets_C3[:, 1] - sets_C3[:, 0])
        columns_GB = _lines(by_page(weights_GTL.sum(1), size, B), self._options.vertical // size)
        columns_GB |= b_B < -(-self._options.sink // size)
        diagonals_GB = _lines(by_page(diagonals(weights_GTL), size, B), self._options.slash // size)
        diagonals_GB |= b_B < -(-self._options.recent // size)
        # keys at a distance in [d size, (d + 1) size) from some row of the set, in pages
        low_CB = (start_C[:, None] - (b_B + 1) * size + 1).clamp_min(0) // size
        high_CB = (stop_C[:, None] - 1 - b_B * size) // size
        far_CB = high_CB < 0
        edges_GCX = torch.zeros(len(weights_GTL), len(sets_C3), B + 1, dtype=torch.int64, device=b_B.device)
        taken_GCB = (diagonals_GB[:, None] & ~far_CB).to(torch.int64)
        edges_GCX.scatter_add_(2, low_CB.expand_as(taken_GCB), taken_GCB)
        edges_GCX.scatter_add_(2, (high_CB.clamp_min(-1) + 1).expand_as(taken_GCB), -taken_GCB)
        along_GCB = edges_GCX.cumsum(2)[..., :B] > 0
        return (along_GCB | columns_GB[:, None]) & (b_B < -(-stop_C // size)[:, None])


def attention_of(probes: Queries, k_LGH: Tensor) -> Tensor:
    """What each kv head's queries put on each position, the mean over its query heads: [G, T, L]."""
    q_TNH, positions_T, scale, *_ = probes
    L, G, H = k_LGH.shape
    wide = torch.promote_types(q_TNH.dtype, torch.float32)
    q_GMH = (q_TNH.to(wide) * scale).view(len(q_TNH), G, -1, H).permute(1, 2, 0, 3).reshape(G, -1, H)
    scores = (q_GMH @ k_LGH.to(wide).permute(1, 2, 0)).view(G, -1, len(q_TNH), L)
    hidden_TL = torch.arange(L, device=q_TNH.device) > positions_T[:, None]
    return scores.masked_fill_(hidden_TL, -torch.inf).softmax(-1).mean(1)


def diagonals(weights_GTL: Tensor) -> Tensor:
    """Sums of what lies d positions back, d = 0 .. L - 1, from rows whose last is at L - 1: [G, L]."""
    G, T, L = weights_GTL.shape
    back_GTL = torch.nn.functional.pad(weights_GTL, (T - 1, 0))
    strides = (
        back_GTL.stride(0),
        back_GTL.stride(1) + 1,
        1,
    )  # each row one further: its own position comes last
    return back_GTL.as_strided((G, T, L), strides).sum(1).flip(-1)


def by_page(sums_GL: Tensor, size: int, pages: int) -> Tensor:
    """Added up by stretches of `size`: [G, pages]."""
    padded_GL = torch.nn.functional.pad(sums_GL, (0, pages * size - sums_GL.shape[1]))
    return padded_GL.unflatten(1, (pages, size)).sum(-1)


def _lines(sums_GB: Tensor, count: int) -> Tensor:
    """The mask of the `count` largest."""
    best = sums_GB.topk(min(count, sums_GB.shape[1])).indices
    return torch.zeros_like(sums_GB, dtype=torch.bool).scatter_(1, best, True)
