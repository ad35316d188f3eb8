"""Self-attention around a KV store: project, norm, rotate, attend, project back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, split_with_sizes

from headrace.kernels.before import Before
from headrace.layer.linear import Linear
from headrace.layer.norm import RmsNorm
from headrace.types import Batch

Turn = Callable[[Tensor], Tensor]
"""The rotation of this step's rows, [T, N, H] -> [T, N, H], maybe in place: what the slot `positions` makes."""


class KeysValues(Protocol):
    """Where keys and values live, and how queries read them. Knows each layer's scale and window."""

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Stores the rows' keys and values, then returns what each query reads: [T, N, H], in q's dtype.

        Queries and keys come rotated. A row at position p sees its own sequence's positions in (p - window, p].
        """
        ...


class SelfAttention:
    """One layer's attention; `layer` is the number by which the KV store knows it."""

    __slots__ = ("head_size", "heads", "k_norm", "kv_heads", "layer", "out", "q_norm", "qkv")

    def __init__(
        self,
        layer: int,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        qkv: Linear,
        out: Linear,
        q_norm: RmsNorm | None = None,
        k_norm: RmsNorm | None = None,
    ) -> None:
        """qkv: one matrix, outputs of queries first, then keys, then values."""
        self.layer = layer
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        self.qkv, self.out = qkv, out
        self.q_norm, self.k_norm = q_norm, k_norm

    def __call__(
        self,
        x_TD: Tensor,
        turn: Turn,
        batch: Batch,
        kv: KeysValues,
        before: Before = None,
        add_TD: Tensor | None = None,
    ) -> Tensor:
        """attention(before(x)) + add, [T, D] -> [T, D]. The result may lie in add_TD."""
        q_TNH, k_TGH, v_TGH = self.project(x_TD, turn, batch, before)
        out_TNH = kv.attend(self.layer, q_TNH, k_TGH, v_TGH, batch)
        return self.out(out_TNH.flatten(1), None, add_TD, mix=batch.mix)

    def project(
        self, x_TD: Tensor, turn: Turn, batch: Batch, before: Before = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values of before(x): [T, N, H], [T, G, H], [T, G, H]."""
        heads, kv_heads = self.heads, self.kv_heads
        qkv_TMH = self.qkv(x_TD, before, mix=batch.mix).view(len(x_TD), -1, self.head_size)  # M = N + 2 G
        qk_TMH, v_TGH = split_with_sizes(qkv_TMH, (heads + kv_heads, kv_heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q_TNH, k_TGH = split_with_sizes(qk_TMH, (heads, kv_heads), 1)
            qk_TMH = torch.cat((self.q_norm(q_TNH), self.k_norm(k_TGH)), dim=1)
        q_TNH, k_TGH = split_with_sizes(turn(qk_TMH), (heads, kv_heads), 1)
        return q_TNH, k_TGH, v_TGH
