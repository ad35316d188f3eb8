"""Parts of a Batch: what its rows read, and what is wanted of them beside the logits of the last ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.types import Pooling


class Run(NamedTuple):
    """Consecutive stored positions that some rows of a batch read. A hole (evicted pages) makes several."""

    first_row: int
    end_row: int
    first_page: int
    """Index into Reads.pages_B."""
    start: int
    """Position of the first token, which is the first of its page."""
    length: int


@dataclass(frozen=True)
class Reads:
    """What the rows of a batch read from one cache group. Runs of the same rows follow each other, by position."""

    pages_B: Tensor
    """Page numbers of every run, one run after the other; int64."""
    runs: tuple[Run, ...]

    @cached_property
    def runs_W5(self) -> Tensor:
        """The runs as int64."""
        from torch import int64, tensor  # here, so that importing this module loads nothing

        return tensor(self.runs, dtype=int64).view(-1, 5)

    def pages(self, run: Run, page_tokens: int) -> Tensor:
        """The run's page numbers."""
        return self.pages_B[run.first_page : run.first_page + -(-run.length // page_tokens)]

    def by_rows(self) -> Iterator[tuple[slice, list[Run]]]:
        """The runs of each span's rows."""
        for (first, end), runs in itertools.groupby(self.runs, key=lambda run: run[:2]):
            yield slice(first, end), list(runs)


@dataclass(frozen=True, slots=True)
class Scored:
    """Consecutive rows of one span whose next tokens are known: prompt tokens to score."""

    seq: int
    first_row: int
    targets: tuple[int, ...]
    """The token that follows each row."""
    count: int
    """How many of the likeliest tokens to report beside it."""


class HiddenSum(NamedTuple):
    """The hidden states of a prompt, normed, added up as far as they were computed."""

    total_D: Tensor
    """float64, added position by position: the same bits however the prompt was cut into spans."""
    stop: int
    """Positions before this one are in it."""
    embedding: bytes = b""
    """Once the prompt is complete: float32, little-endian."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """Consecutive rows of one span whose hidden states are pooled."""

    seq: int
    first_row: int
    end_row: int
    before: HiddenSum | None
    """Of the rows before these."""
    stop: int
    """Position after the last row."""
    complete: Pooling | None = None
    """How it is done, if these rows are the prompt's last."""
