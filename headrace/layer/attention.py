"""Self-attention around a KV store: project, norm, rotate, attend, project back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from headrace.layer.linear import Linear
from headrace.layer.norm import RmsNorm
from headrace.types import Batch

Turn = Callable[[Tensor], Tensor]
"""The rotation of this step's rows, [T, N, H] -> [T, N, H]: what the slot `positions` makes."""


class KeysValues(Protocol):
    """Where keys and values live, and how queries read them. Knows each layer's scale and window."""

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Stores the rows' keys and values, then returns what each query reads: [T, N, H], in q's dtype.

        Queries and keys come rotated. A row at position p sees its own sequence's positions in (p - window, p].
        """
        ...


class SelfAttention:
    """One layer's attention; `layer` is the number by which the KV store knows it."""

    __slots__ = ("head_size", "k", "k_norm", "layer", "out", "q", "q_norm", "v")

    def __init__(
        self,
        layer: int,
        head_size: int,
        *,
        q: Linear,
        k: Linear,
        v: Linear,
        out: Linear,
        q_norm: RmsNorm | None = None,
        k_norm: RmsNorm | None = None,
    ) -> None:
        self.layer = layer
        self.head_size = head_size
        self.q, self.k, self.v, self.out = q, k, v, out
        self.q_norm, self.k_norm = q_norm, k_norm

    def __call__(self, x_TD: Tensor, turn: Turn, batch: Batch, kv: KeysValues) -> Tensor:
        """[T, D] -> [T, D]."""
        heads = (x_TD.shape[0], -1, self.head_size)
        q_TNH = self.q(x_TD).view(heads)
        k_TGH = self.k(x_TD).view(heads)
        v_TGH = self.v(x_TD).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_TNH, k_TGH = self.q_norm(q_TNH), self.k_norm(k_TGH)
        out_TNH = kv.attend(self.layer, turn(q_TNH), turn(k_TGH), v_TGH, batch)
        return self.out(out_TNH.flatten(1))
