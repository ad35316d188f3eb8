"""Keys that are stored as they were before their rotation, and rotated when they are read.

A codec that is better at those (channels keep to their range, whatever the position) says so, `rotated = False`, and
need not know of positions: what is written to it was turned back, and what it reads is turned again, here.

Paper   https://arxiv.org/abs/2401.18079 (KVQuant, section 3.2)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention import reference
from headrace.layer.positions import LivePositions
from headrace.types import Reads, Run


class Store(Protocol):
    """As much of a live codec (headrace.kv.codecs) as one of keys before rotation has."""

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None: ...

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]: ...


def rotaries(
    architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> Mapping[int, LivePositions]:
    """Layer -> its rotation; layers of one scheme share the tables."""
    made: dict[object, LivePositions] = {}
    found = {}
    for layer, block in enumerate(architecture.blocks):
        spec = block.attention
        key = (spec.positions, spec.theta, spec.head_size)
        if key not in made:
            made[key] = spec.positions.start(spec.head_size, spec.theta, architecture.context, device, dtype)
        found[layer] = made[key]
    return found


class Unrotated:
    """Between a cache, whose keys are rotated, and stores, whose keys are not."""

    def __init__(self, turns: Mapping[int, LivePositions]) -> None:
        """turns: each layer's rotation."""
        self._turns = turns

    def back(self, layer: int, k_TGH: Tensor, positions_T: Tensor) -> Tensor:
        """Keys of rows at these positions as they were before their rotation."""
        return self._turns[layer].undo(k_TGH, positions_T)

    def read(
        self, store: Store, arena_PX: Tensor, start: int, layer: int, pages_B: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """See Store; the first token is at position `start`, and keys come rotated."""
        k_LGH, v_LGH = store.read(arena_PX, layer, pages_B, length)
        positions_L = torch.arange(start, start + length, device=k_LGH.device)
        return self._turns[layer].rotate(k_LGH, positions_L), v_LGH

    def attend(
        self, store: Store, arena_PX: Tensor, page_tokens: int, layer: int, queries: Queries, reads: Reads
    ) -> State:
        """See LiveCodec. Reads a run as a whole, and attends to what it read."""

        def gather(run: Run) -> tuple[Tensor, Tensor]:
            return self.read(store, arena_PX, run.start, layer, reads.pages(run, page_tokens), run.length)

        return reference.attend(queries, gather, reads)
