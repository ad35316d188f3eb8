"""Recordings: a forward pass as the native calls that it made, to make again without the Python around them.

Between two kernels lie some 15 microseconds of Python, more when the weights that stream by have driven the interpreter
out of the caches. In a small model that is a fifth of a decoding step. So the native calls of a batch are written down
with their arguments; a later batch of the same shape is copied into the tensors of the first, and the calls are made
again, as one native call where their kernels can be bound (headrace/calls.h). What CUDA graphs do on a GPU, for the
processor.

A pass is recorded only where that is the whole of it: every technique that acts in it says so on its card
(`recordable`); only native calls touched tensors, which a dispatch mode watches; and played back, over memory
that was spoilt, it gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headrace import kernels
from headrace.types import Batch, Reads
from headrace.weight.adapter import Adapter

MOST_ROWS = 8
"""Of a batch that is worth it: with more rows, the kernels take so long that nothing else counts."""
MOST = 4
"""Recordings held at once: each keeps what lies between its kernels, and its logits, some megabytes."""
TIMES, TIMES_WITH_ADAPTERS = 2, 12
"""How often a shape must come to be recorded, which takes as long as a pass. Without adapters it comes again for sure;
which rows run with which adapters changes with every sequence that comes or goes."""
_SPARE_PAGES = 64  # a recording holds for that many more pages than its first batch reads
_EMPTY = {"aten::empty.memory_format", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}

_log = logging.getLogger(__name__)
Shape = tuple[Any, ...]
Forward = Callable[[Batch], tuple[Tensor, ...]]


class Recordings:
    """Runs a forward pass, or plays it back."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._made: dict[
            Shape, Recording | int
        ] = {}  # a number: how often it came; least recently used first
        self.refused = ""
        """Why nothing is recorded; empty as long as it can be."""

    def __len__(self) -> int:
        return sum(isinstance(recording, Recording) for recording in self._made.values())

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the forward pass returns. A batch's shape is recorded when it has come often enough."""
        if self.refused or len(batch.ids_T) > MOST_ROWS or batch.written:
            return self._forward(batch)
        shape = _shape(batch)
        made = self._made.pop(shape, 0)
        if isinstance(made, int):
            made += 1
            worth = made >= (TIMES if batch.mix is None else TIMES_WITH_ADAPTERS)
            made, results = self._record(batch) if worth else (made, self._forward(batch))
        elif made.holds(batch):
            results = made.play(batch)
        else:
            made, results = self._record(batch)
        self._made[shape] = made
        if len(self._made) > MOST:
            del self._made[next(iter(self._made))]
        return results

    def let_go(self, adapter: Adapter) -> None:
        """Drops what was recorded with this adapter: a recording holds the memory that it read."""
        self._made = {
            shape: made
            for shape, made in self._made.items()
            if isinstance(made, int) or adapter not in made.adapters
        }

    def _record(self, batch: Batch) -> tuple[Recording | int, tuple[Tensor, ...]]:
        own = _copy(batch)
        calls: list[kernels.Call] = []
        with _Watch() as watch, kernels.written_down(calls):
            results = self._forward(own)
        if watch.other:
            self._refuse(f"{watch.other} is part of the forward pass")
            return 0, results
        recording, expected = Recording(own, calls, results), tuple(result.clone() for result in results)
        for tensor in watch.allocated:
            tensor.view(torch.uint8).fill_(0xFF)  # NaN in every floating-point format
        if not all(map(torch.equal, recording.play(own), expected)):
            self._refuse("it does something besides its native calls")
            return 0, self._forward(batch)  # keys and values are spoilt, too
        return recording, expected

    def _refuse(self, why: str) -> None:
        self.refused = why
        _log.info("forward passes are not recorded: %s", why)


class Recording:
    """The native calls of one batch. They read the batch's tensors, and leave the results where they were."""

    def __init__(self, batch: Batch, calls: list[kernels.Call], results: tuple[Tensor, ...]) -> None:
        self._batch, self._calls, self._results = batch, kernels.joined(calls), results
        self.adapters = {adapter for adapter, _ in batch.mix.key} if batch.mix else set()

    def holds(self, batch: Batch) -> bool:
        """Whether there is room for the batch's pages."""
        mine = zip(self._batch.reads, batch.reads, strict=True)
        return all(len(new.pages_B) <= len(own.pages_B) for own, new in mine)

    def play(self, batch: Batch) -> tuple[Tensor, ...]:
        """The results for a batch of the same shape; overwritten by the next."""
        own = self._batch
        own.ids_T.copy_(batch.ids_T)
        own.positions_T.copy_(batch.positions_T)
        own.rows_R.copy_(batch.rows_R)
        for slots_T, new_T in zip(own.slots, batch.slots, strict=True):
            slots_T.copy_(new_T)
        for reads, new in zip(own.reads, batch.reads, strict=True):
            reads.pages_B[: len(new.pages_B)].copy_(new.pages_B)
            reads.runs_W5.copy_(new.runs_W5)
        for call in self._calls:
            call()
        return self._results


class _Watch(TorchDispatchMode):
    """Collects what is allocated, and notes the last operation on tensors that is neither that nor a view."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[Tensor] = []
        self.other = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled. Otherwise the first call imports PyTorch's compiler: a second, and 45 MB."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() in _EMPTY:
            self.allocated.append(result)
        elif not func.is_view:
            self.other = func.name()
        return result


def _shape(batch: Batch) -> Shape:
    """Everything about a batch that decides which calls are made; only numbers in tensors may differ."""
    adapters = batch.mix.key if batch.mix else ()
    return (len(batch.ids_T), len(batch.rows_R), adapters, *(len(reads.runs) for reads in batch.reads))


def _copy(batch: Batch) -> Batch:
    """The batch in tensors of its own, with spare room for pages."""
    reads = []
    for old in batch.reads:
        pages_B = torch.zeros(len(old.pages_B) + _SPARE_PAGES, dtype=old.pages_B.dtype)
        pages_B[: len(old.pages_B)] = old.pages_B
        reads.append(Reads(pages_B, old.runs))
        assert reads[-1].runs_W5 is not None  # made now, so that its making is not part of the pass
    if batch.mix is not None:
        batch.mix.settle()
    return replace(
        batch,
        ids_T=batch.ids_T.clone(),
        positions_T=batch.positions_T.clone(),
        rows_R=batch.rows_R.clone(),
        slots=tuple(slots_T.clone() for slots_T in batch.slots),
        reads=tuple(reads),
    )
