"""From how many rows on it pays to unpack a block's codes into the cache before they are multiplied.

Both ways give the same bits. Where one overtakes the other depends on the processor, the bits and the size of the
matrix, so it is measured: once per shape and machine, in a few tenths of a second (headrace.kernels.measured).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from headrace import kernels
from headrace.kernels import measured
from headrace.kernels.int_linear.layout import IntWeight, packed_bytes

ROWS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
"""Row counts at which both are timed. A single row is never worth a panel."""
_REPEAT = 15
_SMALL = 1 << 20
"""Bytes of a matrix that may well stay in a cache from step to step."""
_MOST_OUTPUTS = 8192  # of a matrix that are multiplied at a time: all blocks of outputs are alike
_known: dict[tuple[str, str, int], int] = {}


def few_rows(weight: IntWeight) -> int:
    """Rows up to which products with a weight of this shape unpack in registers; the default without native kernels.

    A shape that this machine has not met is timed with the weight itself: no second one has to be in memory.
    """
    if kernels.native("int_linear") is None:
        return weight.few
    w = weight
    shape = f"{w.outputs}x{w.width} group={w.group} bits={w.bits} zeros={int(w.zeros)}"
    key = (shape, kernels.isa(), kernels.threads())
    if key not in _known:
        _known[key] = measured.lookup(
            f"int_linear panel after {shape}", max(ROWS), lambda: best_limit(_time(w))
        )
    return _known[key]


def best_limit(seconds: Mapping[int, tuple[float, float]]) -> int:
    """The limit with the least regret: rows -> (unpacked in registers, through a panel). 1 if panels always win."""

    def regret(limit: int) -> float:
        return sum(pair[rows > limit] / min(pair) for rows, pair in seconds.items())

    return min((1, *seconds), key=regret)


def _time(weight: IntWeight) -> dict[int, tuple[float, float]]:
    """The shortest of interleaved calls: whatever disturbs them makes them longer.

    Each takes the next part of a large matrix, which is driven out of the caches first: a model's weights come from
    memory, not from the last call's cache.
    """
    outputs = min(weight.outputs, _MOST_OUTPUTS)
    size = packed_bytes(outputs, weight.width, weight.group, weight.bits, weight.zeros)
    pieces = [weight.packed[first : first + size] for first in range(0, len(weight.packed) - size + 1, size)]
    parts = itertools.cycle(replace(weight, packed=piece, outputs=outputs) for piece in pieces)
    x = torch.ones(1, weight.width).expand(max(ROWS), -1)  # every row is the same memory
    out = torch.empty(max(ROWS), outputs)
    forget = kernels.native("limits_forget") if len(weight.packed) > _SMALL else None
    found = {}
    for rows in ROWS:
        x_TI, out_TO = x[:rows], out[:rows]
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_REPEAT):
            for unpacked, kept in enumerate(times):
                part = replace(next(parts), few=0 if unpacked else rows)
                if forget is not None:
                    forget(part.packed)
                kept.append(_call(part, x_TI, out_TO))
        found[rows] = (min(times[0]), min(times[1]))
    return found


def _call(weight: IntWeight, x_TI: torch.Tensor, out_TO: torch.Tensor) -> float:
    from headrace.kernels.int_linear import int_linear

    begin = time.perf_counter()
    int_linear(x_TI, weight, out_TO=out_TO)
    return time.perf_counter() - begin
