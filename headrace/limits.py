"""The machine's physical limits: how fast it reads memory and how many operations it does, measured in a second or two.

A kernel that reads `b` bytes and does `o` operations takes at least max(b / read, o / arithmetic) seconds: the roofline
of https://dl.acm.org/doi/10.1145/1498765.1498785. Only figures of one run are comparable: neighbours on the same
machine take their share of all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from headrace import kernels

SIZE = 512 << 20
"""Bytes that are read to measure: beyond most caches."""
ARITHMETIC = ("int8", "bf16", "float32")
"""Kinds of products that are measured, where the machine has them."""
_ROUNDS = 20_000  # of a piece: some ten microseconds to a millisecond, by level
_PIECES = 8  # per thread, so that one which is held up leaves its share to others


@dataclass(frozen=True)
class Limits:
    """What the machine does at most. A multiplication and an addition are two operations."""

    read: float
    """Bytes per second from memory, on all threads of the pool."""
    int8: float | None
    """Operations per second in dot products of bytes, of the fastest kind: with AVX2 those of codes of few bits. None
    where nothing native measures it."""
    bf16: float | None
    """The same of bfloat16; None where the processor has no instruction for it."""
    float32: float
    """The same of float32 multiply-adds."""

    def best(self, other: Limits) -> Limits:
        """The larger of each: neighbours make figures smaller, nothing makes them larger."""
        mine, others = asdict(self), asdict(other)
        return Limits(**{name: max((mine[name], others[name]), key=lambda x: x or 0) for name in mine})

    def seconds(self, num_bytes: float, operations: float, arithmetic: str) -> tuple[float, str]:
        """The least time that this takes, and which limit says so: "read", or the arithmetic.

        Float32 stands in for products that the machine has no instruction for, or slower ones.
        """
        rate, name = getattr(self, arithmetic), arithmetic
        if rate is None or rate < self.float32:
            rate, name = self.float32, "float32"
        reading, computing = num_bytes / self.read, operations / rate
        return (reading, "read") if reading >= computing else (computing, name)

    def row(self) -> dict[str, float]:
        """In the units that people read: read_gb_s (GB/s), and int8_gop_s, ... (10^9 operations per second)."""
        rates = {name: getattr(self, name) for name in ARITHMETIC}
        found = {f"{name}_gop_s": rate / 1e9 for name, rate in rates.items() if rate is not None}
        return {"read_gb_s": self.read / 1e9, **found}


def measure(*, size: int = SIZE, seconds: float = 0.25) -> Limits:
    """All limits, each the best of what is measured in `seconds`, at the level in use."""
    int8, bf16, float32 = (_arithmetic(name, seconds / 2) for name in ARITHMETIC)
    return Limits(
        read=read_bandwidth(size=size, seconds=seconds),
        int8=int8,
        bf16=bf16,
        float32=float32 if float32 is not None else _torch_products(seconds / 2),
    )


def read_bandwidth(*, size: int = SIZE, seconds: float = 0.25) -> float:
    """Bytes per second read from memory, at least: the best of repeated passes over `size` bytes, in huge pages.

    By the threads of the native pool; by PyTorch's where there is no native module. Less than `size` is read where
    memory is short; what is read must exceed every cache.
    """
    read, fill = kernels.native("limits_read"), kernels.native("limits_fill")
    if read is None or fill is None:
        return _torch_read(_affordable(size), seconds)
    from headrace.weight.memory import huge

    data = huge(_affordable(size))
    fill(data, 1)  # pages exist once they are written, near the thread that does it
    return data.nbytes / _best(lambda: read(data), seconds)


def _affordable(size: int) -> int:
    """At most a quarter of the free memory, at least 16 MiB."""
    from headrace.weight.memory import available_bytes

    free = available_bytes("cpu")
    return size if free is None else max(min(size, free // 4), min(size, 16 << 20))


def _arithmetic(name: str, seconds: float) -> float | None:
    """Operations per second of a kind of products; None where nothing native does them."""
    run: Callable[..., int] | None = kernels.native(f"limits_{name}")
    if run is None:
        return None
    pieces = _PIECES * kernels.threads()
    operations = run(pieces, 1)
    return _ROUNDS * operations / _best(lambda: run(pieces, _ROUNDS), seconds)


def _torch_read(size: int, seconds: float) -> float:
    import torch

    # sums of integers are the cheapest: arithmetic must not bound it
    data = torch.ones(size // 8, dtype=torch.int64)
    return data.nbytes / _best(data.sum, seconds)


def _torch_products(seconds: float) -> float:
    import torch

    size = 1024
    x = torch.full((size, size), 0.5)
    out = torch.empty_like(x)
    return 2 * size**3 / _best(lambda: torch.mm(x, x, out=out), seconds)


def _best(call: Callable[[], object], seconds: float) -> float:
    """The shortest of repeated calls, in seconds: at least three."""
    best, end, calls = math.inf, time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - begin), calls + 1
    return best
