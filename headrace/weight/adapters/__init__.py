"""Slot `adapter`: kinds of fine-tuning that are kept apart from the model, by the peft_type in adapter_config.json.

Add one: a file here with a frozen dataclass that has `card` and `open`, and a line in the index. All kinds run in one
batch, each on its own rows; what holds them, and reads their files, is in headrace/weight/adapter.py.
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
        """Adds to rows of a product's result, in place: (rows int64 [A], update of this kind), ... No row comes twice,
        others are not touched, and a row's result does not depend on them. x, before: the product's own."""
        ...


class Opened(Protocol):
    """A folder that has been checked, all but its numbers."""

    nbytes: int  # that its updates will take

    def load(self) -> Generator[int, None, Mapping[str, Update]]:
        """Yields how many bytes it read, every few megabytes; returns updates by stacked product. Raises ModelError."""
        ...


class Kind(Protocol):
    """One kind of adapter."""

    card: ClassVar[Card]

    def open(self, files: AdapterFiles, sites: Mapping[str, Site], dtype: torch.dtype) -> Opened:
        """Checks the folder against the model: `sites` may be adapted, by the name that checkpoints have for them;
        `dtype` is that of the model's arithmetic. Raises ModelError, naming file and tensor, for whatever would not be
        carried out to the letter."""
        ...


SLOT = Slot(
    name="adapter",
    asks="what kind of adapter a folder holds",
    index={"lora": "headrace.weight.adapters.lora:Lora"},
    default="",
)
