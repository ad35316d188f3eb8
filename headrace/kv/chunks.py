"""Chunks of positions: what a query reads of chunks before its own, with rotations of their own.

    keys     [ chunk 0 ][ chunk 1 ][ chunk 2 ][ chunk 3 ..          stored as the position scheme turns them
    a query in chunk 3 reads  |-- far --------||- before -||- own   attended to apart, and merged

Which keys are whose is a matter of the query's position alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.kv.groups import GroupSpec, Interval, PageSizes
from headrace.layer.positions import LivePositions
from headrace.types import Reads

OWN, BEFORE, FAR = 0, 1, 2
"""Segments of a query."""


class LiveChunks(LivePositions, Protocol):
    """Of a scheme with chunks: `at` is for keys, and queries of the same chunk. What that has turned, the others turn
    on, as keys of the chunk before see queries, and those of all chunks before that."""

    def before(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]: ...

    def far(self, positions_T: Tensor) -> Callable[[Tensor], Tensor]: ...


class Segment(NamedTuple):
    """What some rows read of chunks of positions before their own. Part of a Batch."""

    rows_K: Tensor
    """Rows of the batch, rising; int64."""
    reads: Reads
    """Of these rows, counted among themselves."""


class Chunks:
    """Of a model whose position scheme has them."""

    def __init__(self, architecture: Architecture, dtype: object, device: object) -> None:
        first = architecture.blocks[0].attention.positions
        self.size: int | None = first.chunk
        """Tokens; None: there are no chunks, and everything is a query's own."""
        assert all(block.attention.positions.chunk == self.size for block in architecture.blocks)
        self._live: list[LiveChunks] = []
        if self.size is not None:
            made: dict[tuple[float, int], LiveChunks] = {}
            for block in architecture.blocks:
                spec = block.attention
                key = (spec.theta, spec.head_size)
                if key not in made:
                    made[key] = spec.positions.start(
                        spec.head_size, spec.theta, architecture.context, device, dtype
                    )
                self._live.append(made[key])

    def check(self, groups: tuple[GroupSpec, ...], sizes: PageSizes) -> Chunks:
        """Itself. Raises ConfigError for groups that forget, or pages that chunks cut in two."""
        if self.size is None:
            return self
        for group, tokens in zip(groups, sizes.tokens, strict=True):
            if group.window is not None:
                raise ConfigError(
                    f"positions in chunks of {self.size} need every key, and the group {group.name} keeps a window of "
                    f"{group.window}: use a KV layout and keeper that keep everything"
                )
            if self.size % tokens:
                raise ConfigError(
                    f"a chunk of {self.size} positions does not end with a page of {tokens} tokens: use "
                    f"chunk={-(-self.size // tokens) * tokens}"
                )
        return self

    def end(self, position: int, stop: int) -> int:
        """Where the chunk of a position ends, or `stop` if that is before."""
        return stop if self.size is None else min(stop, (position // self.size + 1) * self.size)

    def part(self, intervals: tuple[Interval, ...], position: int, segment: int) -> tuple[Interval, ...]:
        """What of these positions is in a segment of the query at `position`."""
        if self.size is None:
            return intervals
        own = position // self.size * self.size
        before = max(0, own - self.size)
        low, high = {OWN: (own, None), BEFORE: (before, own), FAR: (0, before)}[segment]
        cut = ((max(a, low), b if high is None else min(b, high)) for a, b in intervals)
        return tuple((a, b) for a, b in cut if a < b)

    def turn(self, layer: int, segment: int, q_TNH: Tensor, positions_T: Tensor) -> Tensor:
        """Queries, turned for their own chunk, as keys of another segment see them. May overwrite them."""
        live = self._live[layer]
        turn = live.before(positions_T) if segment == BEFORE else live.far(positions_T)
        return turn(q_TNH)
