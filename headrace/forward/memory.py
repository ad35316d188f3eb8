"""Before anything is allocated: device, dtype, threads, and how large the KV pool and the context can be."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from dataclasses import dataclass

import torch

from headrace import kernels
from headrace.architecture import Architecture
from headrace.compose import Stack
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.kv.cache import KVCache
from headrace.kv.groups import GroupSpec, PageSizes
from headrace.kv.residence import Under
from headrace.kv.stored import cut, page_sizes, stored_groups
from headrace.kv.tiers import Tier
from headrace.weight import memory
from headrace.weight.formats import Format

_log = logging.getLogger(__name__)

CONTEXTS = 8
"""Full contexts that the default pool has room for."""
SHARE = 4
"""The default pool takes at most one part in this many of the free memory."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes that fit."""

    kv_bytes: int
    context: int
    """Longest prompt plus output of one sequence that the pool can hold."""


def torch_device(name: str) -> torch.device:
    """The device called `name`. Raises ConfigError if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is unknown: use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported: use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch sees no GPU here: use device=cpu")
    return device


def torch_dtype(config: EngineConfig) -> torch.dtype:
    """The dtype of weights and arithmetic."""
    if config.dtype == "auto":
        return torch.bfloat16 if config.device.startswith("cuda") else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def set_threads(threads: int | None, form: Format) -> None:
    """Tells the thread pools their sizes: `threads`, or every core this process may use.

    PyTorch's gets one thread where products are native: its threads spin for a while after each operation, and would
    take the cores from the native ones.
    """
    count = threads or len(os.sched_getaffinity(0))
    kernels.set_threads(count)
    torch.set_num_threads(count if form.torch_products else 1)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Has the C library keep what temporary tensors free, up to a gigabyte, for the next ones.

    It would return each block of some megabytes to the system and fetch new pages for the next tensor, zeroed: for a
    product of 512 rows that takes as long as the product. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def plan_memory(
    config: EngineConfig,
    architecture: Architecture,
    stack: Stack,
    longest_span: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> MemoryPlan:
    """Chooses the pool's size and the context. Raises ConfigError if what was asked for does not fit.

    longest_span: most tokens the policy runs at once (None: whole prompts). Groups with a window keep that many tokens
    beside their window.
    """
    codec, selector, tier = (stack.one(slot) for slot in ("kv-codec", "kv-selector", "kv-tier"))
    under: Under | None = None if tier is None else tier.under
    groups = stored_groups(stack.one("kv-layout").groups(architecture), stack.one("kv-keeper"), codec, under)
    sizes = page_sizes(groups, config.page_tokens, codec, dtype, selector)
    full = pages_for(groups, sizes, architecture.context, longest_span) * sizes.page_bytes
    free = memory.available_bytes(device)
    page, parked = sizes.page_bytes, _parked_bytes(architecture, sizes, dtype)
    kv_bytes = config.kv_bytes
    if kv_bytes is None and under is not None:
        least = cut(groups, sizes, codec, dtype, selector).least
        kv_bytes = min(CONTEXTS * full, under.memory_bytes // least * page)
    elif kv_bytes is None:
        kv_bytes = CONTEXTS * full
        kv_bytes = kv_bytes if free is None else min(kv_bytes, free // SHARE * page // (page + parked))
    beside = kv_bytes // page * parked
    pool = kv_bytes if under is None else under.memory_bytes  # in memory
    if free is not None and pool + beside + config.swap_bytes > free:
        states = f", {beside / 2**30:.1f} GiB of states of tokens that left," if beside else ""
        raise ConfigError(
            f"{pool / 2**30:.1f} GiB of a KV pool{states} and {config.swap_bytes / 2**30:.1f} GiB of swap do not fit "
            f"in {free / 2**30:.1f} GiB of free memory: lower {'memory' if under else 'kv_bytes'} or swap_bytes"
        )
    if tier is not None and under is None:
        _check_tier(tier, kv_bytes + beside + config.swap_bytes if device.type == "cpu" else 0)
    context = _longest(groups, sizes, kv_bytes // sizes.page_bytes, architecture.context, longest_span)
    if context < architecture.context:
        line = (
            f"a KV pool of {kv_bytes / 2**20:.1f} MiB holds one sequence of at most {context} tokens, "
            f"not {architecture.context}"
        )
        if config.context is not None or context < 2:
            raise ConfigError(f"{line}: raise kv_bytes to {full} or lower context")
        _log.warning("%s: the context is %d (raise kv_bytes to %d for all of it)", line, context, full)
    return MemoryPlan(kv_bytes, context)


def _parked_bytes(architecture: Architecture, sizes: PageSizes, dtype: torch.dtype) -> int:
    """Most memory that the states of a page's tokens take that left between layers (kv/present.py)."""
    return len(architecture.thinnings) * sizes.tokens[0] * architecture.width * dtype.itemsize


def _check_tier(tier: Tier, others: int) -> None:
    """Raises ConfigError if the main memory that it takes is not there, beside what others will take."""
    free = memory.available_bytes("cpu")
    if free is not None and tier.memory_bytes + others > free:
        raise ConfigError(
            f"a KV tier takes {tier.memory_bytes / 2**30:.1f} GiB of memory, and {(free - others) / 2**30:.1f} GiB are "
            "free beside the pool and swap: lower its size (of disk: stage), or kv_bytes"
        )


def make_cache(
    config: EngineConfig,
    architecture: Architecture,
    stack: Stack,
    num_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    poison: bool,
) -> KVCache:
    """The cache of a stack, in `num_bytes` of memory."""
    return KVCache(
        architecture,
        layout=stack.one("kv-layout"),
        codec=stack.one("kv-codec"),
        keeper=stack.one("kv-keeper"),
        selector=stack.one("kv-selector"),
        tier=stack.one("kv-tier"),
        dtype=dtype,
        device=device,
        page_tokens=config.page_tokens,
        num_bytes=num_bytes,
        host_bytes=config.swap_bytes if config.preempt == "swap" else 0,
        fingerprint=stack.fingerprint(architecture, dtype) if config.prefix_cache else None,
        poison=poison,
    )


def pages_for(groups: tuple[GroupSpec, ...], sizes: PageSizes, length: int, longest_span: int | None) -> int:
    """Most pages that one sequence of `length` tokens ever holds; one more per group, for copying a shared page."""
    span = min(length, longest_span or length)
    pages = 0
    for group, tokens in zip(groups, sizes.tokens, strict=True):
        whole = -(-group.stored(length) // tokens)
        cap = whole if group.behind is None else -(-(group.behind + span + 1) // tokens) + 1
        pages += min(whole, cap - (-group.sink // tokens)) + 1
    return pages


def _longest(
    groups: tuple[GroupSpec, ...], sizes: PageSizes, pages: int, context: int, longest_span: int | None
) -> int:
    """The longest sequence that always fits, by bisection."""
    low, high = 0, context
    while low < high:
        middle = (low + high + 1) // 2
        if pages_for(groups, sizes, middle, longest_span) <= pages:
            low = middle
        else:
            high = middle - 1
    return low
