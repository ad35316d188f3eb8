"""How much memory is free, and whether something fits: asked before allocating, so that nothing is killed halfway."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from headrace.errors import ModelError

Take = Callable[[int], Tensor]
"""uint8 [n] of memory, on a device that the giver knows."""
PAGE = mmap.PAGESIZE
HUGE = 2 << 20
"""Bytes of a huge page."""
_ANONYMOUS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Python maps shared memory unless told otherwise, which huge pages do not back."""
_GROUPS = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device | str) -> int | None:
    """Free memory of a device; of the CPU, what the system and the control group leave. None if nobody can say."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [limit for limit in (_system(), _control_group()) if limit is not None]
    return min(limits) if limits else None


def require(needed: int, device: torch.device | str, what: str) -> None:
    """Raises ModelError if `needed` bytes are not free on the device."""
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ModelError(
            f"{what} needs {needed / 2**30:.1f} GiB on {device}, but {free / 2**30:.1f} GiB are free: "
            "use a smaller dtype or model, or free memory"
        )


def _system() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    """What the limits of this process's control group and of the container leave, whichever is less."""
    own = {
        line.split(":", 2)[1]: line.split(":", 2)[2].strip("/") for line in _lines(Path("/proc/self/cgroup"))
    }
    left = []
    for place in {own.get("", ""), ""}:  # version 2
        left.append(_left(_GROUPS / place, "memory.max", "memory.current", "inactive_file"))
    for place in {own.get("memory", ""), ""}:  # version 1
        folder = _GROUPS / "memory" / place
        left.append(_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return min((count for count in left if count is not None), default=None)


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Limit minus use; page cache counts as free, because the kernel drops it when asked."""
    most, now = _lines(folder / limit), _lines(folder / used)
    if not (most and now and most[0].isdigit() and now[0].isdigit()):
        return None
    stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat") if " " in line)
    return max(0, int(most[0]) - int(now[0]) + int(stat.get(cache, 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def huge(num_bytes: int, *, spare: int = 0) -> Tensor:
    """uint8 [num_bytes + spare] of main memory, the first in 2 MiB pages where the system has them: a tenth more
    bandwidth or so. Freed with the tensor.

    Pages exist once they are written, so that spare bytes cost nothing until then. Raises ModelError if the memory is
    not there.
    """
    size = num_bytes + spare
    try:
        area = mmap.mmap(-1, size + HUGE, **_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise ModelError(f"{size / 2**30:.1f} GiB of memory cannot be had: {error}") from None
    whole = torch.frombuffer(area, dtype=torch.uint8)
    start, full = -whole.data_ptr() % HUGE, num_bytes // HUGE * HUGE
    if full and hasattr(
        mmap, "MADV_HUGEPAGE"
    ):  # the rest in small pages: a little matrix must not take 2 MiB
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE, start, full)
    return whole[start : start + size]


def addresses(num_bytes: int) -> tuple[mmap.mmap, Tensor]:
    """uint8 [num_bytes] of addresses, in small pages that exist once they are written, and until the mapping is told
    that they are not needed. Raises ModelError if not even addresses can be had."""
    keep = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    flags = {"flags": _ANONYMOUS["flags"] | keep} if _ANONYMOUS else {}
    try:
        area = mmap.mmap(-1, num_bytes, **flags)
    except (OSError, OverflowError) as error:
        raise ModelError(f"{num_bytes / 2**30:.1f} GiB of addresses cannot be had: {error}") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            area.madvise(mmap.MADV_NOHUGEPAGE)
    return area, torch.frombuffer(area, dtype=torch.uint8)


def taker(device: torch.device) -> Take:
    """Memory of a device, for packed weights."""
    if device.type == "cpu":
        return huge
    return lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8, device=device)
