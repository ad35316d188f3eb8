"""From how many rows on it pays to unpack a block's codes into the cache before they are multiplied.

Both ways give the same bits. Where one overtakes the other depends on the processor, the bits and the size of the
matrix, so it is measured: once per shape and machine, in a few tenths of a second (headrace.kernels.measured).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from headrace import kernels
from headrace.kernels import measured
from headrace.kernels.int_linear.layout import IntWeight, packed_bytes

ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Row counts at which both are timed. A single row is never worth a panel."""
_REPEAT = 9
_MOST_BYTES = 16 << 20  # of the matrix that stands in for a larger one
_SOME_BYTE = 0x2C  # as a float16 scale, 0x2c2c is 0.065


def few_rows(weight: IntWeight) -> int:
    """Rows up to which products with a weight of this shape unpack in registers; the default without native kernels."""
    if kernels.native("int_linear") is None:
        return weight.few
    w = weight
    return _of_shape(w.outputs, w.width, w.group, w.bits, w.zeros, kernels.isa(), kernels.threads())


@functools.cache
def _of_shape(outputs: int, width: int, group: int, bits: int, zeros: bool, isa: str, threads: int) -> int:
    name = f"int_linear {outputs}x{width} group={group} bits={bits} zeros={int(zeros)}"
    return measured.lookup(name, max(ROWS), lambda: best_limit(_time(outputs, width, group, bits, zeros)))


def best_limit(seconds: Mapping[int, tuple[float, float]]) -> int:
    """The limit with the least regret: rows -> (unpacked in registers, through a panel). 1 if panels always win."""

    def regret(limit: int) -> float:
        return sum(pair[rows > limit] / min(pair) for rows, pair in seconds.items())

    return min((1, *seconds), key=regret)


def _time(outputs: int, width: int, group: int, bits: int, zeros: bool) -> dict[int, tuple[float, float]]:
    """The shortest of interleaved calls: whatever disturbs them makes them longer."""
    per_output = packed_bytes(64, width, group, bits, zeros) // 64
    outputs = min(outputs, max(64, _MOST_BYTES // per_output // 64 * 64))
    packed = torch.full((packed_bytes(outputs, width, group, bits, zeros),), _SOME_BYTE, dtype=torch.uint8)
    weight = IntWeight(packed, outputs, width, group, bits, zeros)
    found = {}
    for rows in ROWS:
        x_TI, out_TO = torch.ones(rows, width), torch.empty(rows, outputs)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_REPEAT):
            for unpacked, kept in enumerate(times):
                kept.append(_call(replace(weight, few=0 if unpacked else rows), x_TI, out_TO))
        found[rows] = (min(times[0]), min(times[1]))
    return found


def _call(weight: IntWeight, x_TI: torch.Tensor, out_TO: torch.Tensor) -> float:
    from headrace.kernels.int_linear import int_linear

    begin = time.perf_counter()
    int_linear(x_TI, weight, out_TO=out_TO)
    return time.perf_counter() - begin
