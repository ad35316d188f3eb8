"""Keeps the last tokens, and of those before the most attended; what is dropped is merged into its nearest survivor.

Paper   https://arxiv.org/abs/2406.13035 (D2O: dynamic discriminative operations)
Idea    A few tokens draw most of the attention: they survive in what leaves the window. A dropped token's key and value
        are mixed into those of the survivor whose key points most nearly the same way, if it is near enough, so that
        what it said is not lost altogether. How near follows what was seen so far. Layers whose attention is spread
        evenly need more survivors than those that look at a few tokens.
Trades  Attention to the block that has become whole is computed once more, for its queries alone; decoding between is
        plain. Survivors are kept in the model's dtype, and twice while a record is made; a long chunk makes several.
        On the model in the box, with 304 tokens kept of 2,047, 0.08 bits per byte more than with everything, where a
        window alone of as many costs 0.015, and passkeys are found as seldom as with that (4 texts).
Differs The paper attends to the whole prompt, then compresses it; here tokens leave by blocks, prompt or not, so that
        memory is bounded and what a position reads does not depend on how its prompt was cut. Attention is added up
        from the block on in which the first tokens leave. Budgets of layers come from a profile (headrace profile),
        made once per model, or are equal; no layer is left whole. Layers with windows of their own keep these. In
        float32 a row's last bits depend on the rows beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from headrace.errors import ConfigError
from headrace.kernels import attention
from headrace.kernels.attention import Queries, State
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.heads import read_spread
from headrace.kv.summary import ReadTokens, Records, check_blocks
from headrace.slots import Card
from headrace.types import Fold, Reads

LEAST = 0.01
"""Of the mean budget: what every layer has."""
MOST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class D2O:
    """A sink, survivors and a window."""

    card: ClassVar[Card] = Card(
        slot="kv-keeper",
        exact="lossy",
        paper="https://arxiv.org/abs/2406.13035",
        breaks=tuple(
            (f"kv-selector={name}", "a window is all that is read, and there is nothing to choose from")
            for name in ("landmarks", "squeezed", "vslash")
        ),
    )
    heavy: int = 256
    """Survivors of each kv head, in the mean over the layers."""
    window: int = 256
    """Last tokens that stay, at most: whole blocks."""
    sink: int = 64
    """First tokens that stay: whole blocks."""
    block: int = 64
    """Tokens that leave the window together: a power of two."""
    ema: float = 0.5
    """Weight of what was seen before, in how near a survivor has to be."""
    profile: str = ""
    """File that `headrace profile` wrote: budgets by layer. Without, all layers have the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.heavy <= MOST or not 0 <= self.ema < 1:
            raise ValueError(
                f"heavy={self.heavy} must be from 1 to {MOST}, and ema={self.ema} at least 0, below 1"
            )
        check_blocks(self.block, self.sink, self.window)

    def limit(self, group: GroupSpec) -> GroupSpec:
        if group.window is not None:
            return group
        layers = [member.layer for member in group.members]
        of_layers = tuple(zip(layers, self._budgets(layers), strict=True))
        return replace(
            group,
            window=self.window,
            sink=self.sink,
            summary=Survivors(self.block, self.window, of_layers, self.ema),
        )

    def _budgets(self, layers: list[int]) -> list[int]:
        if not self.profile:
            return [self.heavy for _ in layers]
        shares = budgets(read_spread(self.profile))
        if max(layers) >= len(shares):
            raise ConfigError(
                f"{self.profile} is the profile of another model; make one: headrace profile --out FILE"
            )
        return [max(1, round(self.heavy * shares[layer])) for layer in layers]


def budgets(spread: list[float]) -> list[float]:
    """Each layer's share of the mean budget, from how unevenly its tokens are attended to; their mean is 1."""
    weights = [math.exp(-x) for x in spread]
    shares = [max(LEAST, len(spread) * weight / sum(weights)) for weight in weights]
    return [share * len(shares) / sum(shares) for share in shares]


@dataclass(frozen=True)
class Survivors:
    """The tokens that survived; see headrace.kv.summary."""

    block: int
    window: int
    budgets: tuple[tuple[int, int], ...]
    """(layer, survivors)."""
    ema: float
    asks: ClassVar[bool] = True

    def record_bytes(self, member: Member, dtype: torch.dtype) -> int:
        survivors, heads = dict(self.budgets)[member.layer], len(member.kv_heads)
        tokens = 2 * heads * survivors * member.head_size * dtype.itemsize
        return tokens + heads * (survivors + self.window + 1) * _wide(dtype).itemsize

    def start(self, group: GroupSpec, records: Records, dtype: torch.dtype) -> _Live:
        return _Live(group, records, self, dtype)


class _Record(NamedTuple):
    """One layer's part, in wide numbers; M survivors so far, in the order of the text, and W tokens of the window."""

    keys_GMH: Tensor
    values_GMH: Tensor
    mass_GM: Tensor
    """Attention that they drew."""
    recent_GW: Tensor
    """Attention that tokens of the window drew."""
    near_G: Tensor
    """Similarity from which on a dropped token is merged; NaN before the first."""


class _Live:
    """See LiveSummary."""

    def __init__(self, group: GroupSpec, records: Records, summary: Survivors, dtype: torch.dtype) -> None:
        self._group, self._records, self._summary, self._dtype = group, records, summary, dtype
        self._wide, self._budgets = _wide(dtype), dict(summary.budgets)
        self._members = {member.layer: member for member in group.members}

    def merge(
        self, arena_PX: Tensor, layer: int, fold: Fold, read: ReadTokens, queries: Queries | None
    ) -> None:
        assert queries is not None
        block, window = self._summary.block, self._summary.window
        sink_SGH, _ = read(layer, fold.sink_B, self._group.sink, 0)
        k_WGH, v_WGH = (x.to(self._wide) for x in read(layer, fold.window_B, window, fold.end - window))
        before = self._read(arena_PX, layer, fold.before_B, self._group.left(fold.end - block))
        keys_XGH = torch.cat((sink_SGH.to(self._wide), before.keys_GMH.transpose(0, 1), k_WGH))
        mass_GX = _attended(queries, keys_XGH, window)[:, len(sink_SGH) :]
        survivors = before.mass_GM.shape[1]
        mass_GM = before.mass_GM + mass_GX[:, :survivors]
        moved_GW = torch.nn.functional.pad(before.recent_GW[:, block:], (0, block))
        recent_GW = moved_GW + mass_GX[:, survivors:]
        every = _Record(
            torch.cat((before.keys_GMH, k_WGH[:block].transpose(0, 1)), 1),
            torch.cat((before.values_GMH, v_WGH[:block].transpose(0, 1)), 1),
            torch.cat((mass_GM, recent_GW[:, :block]), 1),
            recent_GW,
            before.near_G,
        )
        budget = self._budgets[layer]
        kept = every if every.mass_GM.shape[1] <= budget else _drop(every, budget, self._summary.ema)
        self._write(arena_PX, layer, fold.after_B, kept)

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        q_TNH, positions_T, scale, _, _ = queries
        out_TNH = torch.zeros_like(q_TNH, memory_format=torch.contiguous_format)
        lse_TN = torch.full(q_TNH.shape[:2], -torch.inf, dtype=self._wide, device=q_TNH.device)
        for run in reads.runs:
            rows, pages_B = (
                slice(run.first_row, run.end_row),
                reads.pages_B[run.first_page :][: self._records.pages],
            )
            record = self._read(arena_PX, layer, pages_B, self._group.left(run.start + self._summary.block))
            k_MGH, v_MGH = record.keys_GMH.transpose(0, 1), record.values_GMH.transpose(0, 1)
            state = attention.attend(q_TNH[rows], k_MGH, v_MGH, positions_T[rows], 0, scale, None)
            out_TNH[rows], lse_TN[rows] = state
        return State(out_TNH, lse_TN)

    def _read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, left: int) -> _Record:
        """The record in these pages, after so many tokens have left; an empty one without pages."""
        member, budget = self._members[layer], self._budgets[layer]
        heads, size, window = len(member.kv_heads), member.head_size, self._summary.window
        if not len(pages_B):
            empty = torch.zeros(heads, 0, size, dtype=self._wide, device=arena_PX.device)
            recent_GW = torch.zeros(heads, window, dtype=self._wide, device=arena_PX.device)
            return _Record(empty, empty, empty[..., 0], recent_GW, recent_GW[:, 0] + torch.nan)
        [record_X] = self._records.read(arena_PX, layer, pages_B)
        tokens = 2 * heads * budget * size * self._dtype.itemsize
        stored = record_X[:tokens].view(self._dtype).view(2, heads, budget, size)[:, :, :left]
        k_GMH, v_GMH = stored.to(self._wide).unbind(0)
        numbers = record_X[tokens:].clone().view(self._wide).view(heads, -1)
        mass_GM, recent_GW, near_G1 = numbers.split((budget, window, 1), 1)
        return _Record(k_GMH, v_GMH, mass_GM[:, :left], recent_GW, near_G1[:, 0])

    def _write(self, arena_PX: Tensor, layer: int, pages_B: Tensor, record: _Record) -> None:
        missing = self._budgets[layer] - record.mass_GM.shape[1]
        pair = torch.stack((record.keys_GMH, record.values_GMH)).to(self._dtype)
        tokens = torch.nn.functional.pad(pair, (0, 0, 0, missing))
        mass_GM = torch.nn.functional.pad(record.mass_GM, (0, missing))
        numbers = torch.cat((mass_GM, record.recent_GW, record.near_G[:, None]), 1)
        parts = (part.contiguous().view(torch.uint8).flatten() for part in (tokens, numbers))
        self._records.write(arena_PX, layer, pages_B, torch.cat(tuple(parts)))


def _attended(queries: Queries, keys_XGH: Tensor, window: int) -> Tensor:
    """[G, X]: what the queries of a block attend to, added up over them, in the mean over a kv head's query heads.

    keys: those of the sink, of survivors, and of the window, which ends with the block's own.
    """
    q_PGEH = queries.q_TNH.to(keys_XGH.dtype).unflatten(1, (keys_XGH.shape[1], -1))
    scores_GEPX = torch.einsum("pgeh,xgh->gepx", q_PGEH, keys_XGH) * queries.scale
    ahead_PX = torch.zeros(scores_GEPX.shape[2:], dtype=torch.bool, device=keys_XGH.device)
    last = int(queries.positions_T[-1])
    ahead_PX[:, -window:] = (
        torch.arange(last + 1 - window, last + 1, device=keys_XGH.device) > queries.positions_T[:, None]
    )
    return scores_GEPX.masked_fill(ahead_PX, -torch.inf).softmax(-1).sum(2).mean(1)


def _drop(every: _Record, budget: int, ema: float) -> _Record:
    """The most attended ones, with the others merged into those that are near enough."""
    order_GC = every.mass_GM.argsort(dim=1, descending=True, stable=True)
    kept_GM, gone_GE = order_GC[:, :budget].sort(1).values, order_GC[:, budget:]  # E that are dropped
    k_GMH, v_GMH = (_pick(x, kept_GM) for x in every[:2])
    gone_k_GEH, gone_v_GEH = (_pick(x, gone_GE) for x in every[:2])
    cosine_GEM = (
        torch.nn.functional.normalize(gone_k_GEH, dim=-1) @ torch.nn.functional.normalize(k_GMH, dim=-1).mT
    )
    best_GE, nearest_GE = cosine_GEM.max(-1)
    mean_G = best_GE.mean(1)
    near_G = torch.where(every.near_G.isnan(), mean_G, ema * every.near_G + (1 - ema) * mean_G)
    weight_GE = best_GE.exp().where(best_GE >= near_G[:, None], 0.0)
    share_GME = (torch.nn.functional.one_hot(nearest_GE, budget) * weight_GE[..., None]).mT
    total_GM1 = math.e + share_GME.sum(-1, keepdim=True)  # a survivor is as near to itself as can be
    k_GMH, v_GMH = (
        (math.e * x + share_GME @ gone) / total_GM1 for x, gone in ((k_GMH, gone_k_GEH), (v_GMH, gone_v_GEH))
    )
    return _Record(k_GMH, v_GMH, every.mass_GM.gather(1, kept_GM), every.recent_GW, near_G)


def _pick(x_GCH: Tensor, which_GM: Tensor) -> Tensor:
    return x_GCH.gather(1, which_GM[..., None].expand(-1, -1, x_GCH.shape[-1]))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
