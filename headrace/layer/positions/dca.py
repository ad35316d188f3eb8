"""Dual chunk attention: distances beyond the trained ones are replaced by ones that the model knows.

Paper   https://arxiv.org/abs/2402.17463 (ChunkLlama); https://arxiv.org/abs/2501.15383 (Qwen2.5-1M)
Idea    Positions begin again at every chunk, for keys. A query sees keys of its own chunk at their distance; those of
        the chunk before from its true place or from chunk + local, whichever is nearer, so that neighbours keep their
        distance; and those of all chunks before that from chunk + local. Three segments, each attended to with its own
        rotation of the query, and merged.
Trades  Texts of several times the trained context, without fine-tuning; far apart, the order within a chunk is all
        that is known. Up to one chunk nothing changes.
Differs Plain rotary frequencies, and no temperature that grows with the text. Passes are not recorded: merging is
        PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.layer import rotary
from headrace.slots import Card

_CHOOSES = "it scores keys with one rotation of a query, and far chunks have others"
_FORGETS = "it would forget keys that far segments read: chunks need all of them"


@dataclass(frozen=True, kw_only=True)
class Dca:
    """Chunks of positions."""

    card: ClassVar[Card] = Card(
        slot="positions",
        exact="lossy",
        paper="https://arxiv.org/abs/2402.17463",
        breaks=(
            rotary.ONE_SCHEME,
            ("sliding_window", "windowed layers see no far chunk, and were trained with their own distances"),
            ("kv-keeper=streaming", _FORGETS),
            ("kv-keeper=d2o", _FORGETS),
            ("kv-layout=duo", _FORGETS),
            ("kv-layout=razor", _FORGETS),
            ("kv-codec=kvquant", "it turns keys when they are read, all of them for one rotation of a query"),
            *((f"kv-selector={name}", _CHOOSES) for name in ("landmarks", "squeezed", "vslash")),
        ),
    )
    chunk: int
    """Tokens after which keys' positions begin again; five eighths of the trained context are usual. A multiple of
    what a page holds."""
    local: int | None = None
    """Neighbours in the chunk before that keep their distance; None is a fifth of the chunk. chunk + local should not
    be beyond the trained context."""

    def __post_init__(self) -> None:
        if self.chunk < 2 or not 0 <= self.reach < self.chunk:
            raise ValueError(f"chunk={self.chunk} must be at least 2, and local={self.local} less than that")

    @property
    def reach(self) -> int:
        return self.chunk // 5 if self.local is None else self.local

    def start(
        self, head_size: int, theta: float, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> _Live:
        most = max(context, self.chunk + self.reach + 1)
        tables = rotary.tables(rotary.frequencies(head_size, theta), most, device, dtype)
        return _Live(tables, self.chunk, self.reach)


class _Live:
    """See LiveChunks."""

    def __init__(self, tables: rotary.Rotary, chunk: int, local: int) -> None:
        self._tables, self._chunk, self._local = tables, chunk, local
        self.scale = tables.scale

    def at(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]:
        return self._tables.at(positions_T % self._chunk)

    def rotate(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        return self._tables.rotate(x_TNH, positions_T % self._chunk)

    def undo(self, x_TNH: Tensor, positions_T: Tensor) -> Tensor:
        return self._tables.undo(x_TNH, positions_T % self._chunk)

    def before(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]:
        behind_T = self._chunk + self._local - positions_T % self._chunk
        return self._tables.at(behind_T.clamp(max=self._chunk))

    def far(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]:
        return self._tables.at(self._chunk + self._local - positions_T % self._chunk)
