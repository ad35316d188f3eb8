"""Slot `kv-codec`: how a page's bytes hold keys and values. One is a frozen dataclass with what Codec lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.kv.groups import GroupSpec
from headrace.slots import Card, Slot
from headrace.types import Reads

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headrace.kernels.attention import Queries, State


class LiveCodec(Protocol):
    """A codec at work on one cache group. Holds no keys or values itself: they live in `arena_PX`.

    arena_PX: uint8 [pages, bytes per page], owned by the pool. A *slot* is page * page_tokens + offset.
    """

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        """Stores one entry per row at its slot. Mutates arena_PX only at those slots (and their page's metadata), in
        pages that are not shared. G are the kv heads of `layer` in this group."""

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [length, G, H] of the first `length` tokens in these pages, all of which were written."""

    def attend(self, arena_PX: Tensor, layer: int, queries: Queries, reads: Reads) -> State:
        """Attention of a batch's rows over their runs, as in kernels.paged_attention. N: this group's query heads."""


class Codec(Protocol):
    """How keys and values are stored."""

    card: ClassVar[Card]
    block_tokens: int | None
    """None: tokens are written as they come. Else only whole blocks of this many are, in slots that follow each other,
    in pages of whole blocks; those of an unfinished block the cache keeps apart, rounded to `rest` only."""
    rest: torch.dtype | None
    """What the tokens of an unfinished block are kept in; None is the model's own dtype."""
    rotated: bool
    """False: keys come before rotation, without blocks, and kv/unrotated.py attends to what is read."""

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of a page that holds `tokens` tokens of every member of the group. Pure; a multiple of 64."""

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> LiveCodec:
        """The live codec of one group."""


SLOT = Slot(
    name="kv-codec",
    asks="how keys and values are stored",
    index={
        "plain": "headrace.kv.codecs.plain:Plain",
        "bf16": "headrace.kv.codecs.plain:Bf16",
        "int8": "headrace.kv.codecs.int8:Int8",
        "kivi": "headrace.kv.codecs.kivi:Kivi",
        "kvquant": "headrace.kv.codecs.kvquant:Kvquant",
    },
    default="plain",
)
