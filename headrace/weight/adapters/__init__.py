"""Slot `adapter`: kinds of fine-tuning that are kept apart from the model, by the peft_type in adapter_config.json.

Add one: a file here with a frozen dataclass that has `card` and `open`, and a line in the index.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headrace.kernels.before import Before
    from headrace.weight.adapter import AdapterFiles, Site


class Update(Protocol):
    """What one adapter does to one product. Immutable."""

    nbytes: int

    @staticmethod
    def add(out_TO: Tensor, x: Tensor, before: Before, updates: Sequence[tuple[Tensor, Any]]) -> None:
        """Adds to rows of a product's result: (rows int64 [A], update of this kind), ... No row comes twice, others are
        not touched, and a row's result does not depend on them. x, before: the product's own."""


class Opened(Protocol):
    """A folder that has been checked, all but its numbers. nbytes: memory that its updates will take."""

    nbytes: int

    def load(self) -> Generator[int, None, Mapping[str, Update]]:
        """Yields how many bytes it read, every few megabytes; returns updates by stacked product. Raises ModelError."""


class Kind(Protocol):
    """One kind of adapter."""

    card: ClassVar[Card]

    def open(
        self, files: AdapterFiles, sites: Mapping[str, Site], dtype: torch.dtype, device: torch.device
    ) -> Opened:
        """Checks the folder against a model of this dtype and device, whose `sites`, by checkpoints' names, may change.
        Raises ModelError, naming file and tensor, for whatever would not be carried out to the letter."""


SLOT = Slot(
    name="adapter",
    asks="what kind of adapter a folder holds",
    index={
        "lora": "headrace.weight.adapters.lora:Lora",
        "s2ft": "headrace.weight.adapters.s2ft:S2ft",
    },
    default="",
)
