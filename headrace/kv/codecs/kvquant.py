"""Keys before rotation and values in 4, 3 or 2 bits, as numbers of codebooks that were learnt from the model.

Paper   https://arxiv.org/abs/2401.18079 (KVQuant)
Idea    A channel's keys keep to a range of their own, as long as they are not rotated: so its range is measured once,
        and each token is rounded as it comes. A token's values have the range of the token. Between the ends numbers
        are not spread evenly, so codes are those of a codebook: per layer one for keys and one for values.
Trades  At 3 bits and heads of 128 3.1 bits per number, beside 16. Keys are rotated when they are read, and attention is
        PyTorch's on what was read: this saves memory, and no time.
Differs Codebooks weigh all samples alike (no Fisher information). No outliers are kept apart, so ranges reach nearly
        to the largest number seen; the first tokens are rounded, too. Values' ranges are per kv head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from headrace.errors import ConfigError
from headrace.kv import codebooks
from headrace.kv.codebooks import BITS, from_unit, to_unit
from headrace.kv.groups import ALIGN, GroupSpec, Member
from headrace.slots import Card

_RANGE = 2 * torch.bfloat16.itemsize


@dataclass(frozen=True, kw_only=True)
class Kvquant:
    """Codes, whatever the model's dtype is."""

    card: ClassVar[Card] = Card(
        slot="kv-codec",
        exact="lossy",
        paper="https://arxiv.org/abs/2401.18079",
        breaks=tuple(
            (f"kv-selector={name}", "it chooses by rotated keys, and kvquant stores others; use int8")
            for name in ("landmarks", "squeezed", "vslash")
        ),
        artifact="codebooks of the model: headrace profile --of codes --model DIR --out FILE",
    )
    block_tokens: ClassVar[None] = None
    rest: ClassVar[None] = None
    rotated: ClassVar[bool] = False
    codebooks: str
    """File that `headrace profile --of codes` wrote."""
    bits: int = 4
    """Per number: 4, 3 or 2."""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits} must be 4, 3 or 2")

    def page_bytes(self, group: GroupSpec, tokens: int, dtype: torch.dtype) -> int:
        used = tokens * sum(len(m.kv_heads) * _head_bytes(m, self.bits) for m in group.members)
        return -(-used // ALIGN) * ALIGN

    def start(self, group: GroupSpec, page_tokens: int, dtype: torch.dtype) -> _Live:
        books, places, at = _read(self.codebooks), {}, 0
        for member in group.members:
            size = len(member.kv_heads) * _head_bytes(member, self.bits)
            place = slice(at, at + page_tokens * size)
            places[member.layer] = _place(self.codebooks, books, member, self.bits, place)
            at = place.stop
        return _Live(places, page_tokens, self.bits, dtype)


class _Place(NamedTuple):
    """Of one layer."""

    bytes: slice
    """Of a page: [token][kv head][codes of the key | codes of the value | the value's range]."""
    head_size: int
    low_GH: Tensor
    high_GH: Tensor
    keys_C: Tensor
    values_C: Tensor


class _Live:
    """See headrace.kv.unrotated.Store. Arithmetic is float32."""

    def __init__(self, places: Mapping[int, _Place], page_tokens: int, bits: int, dtype: torch.dtype) -> None:
        self._places, self._page_tokens, self._bits, self._dtype = places, page_tokens, bits, dtype

    def write(self, arena_PX: Tensor, layer: int, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
        place = self._places[layer]
        k_TGH, v_TGH = k_TGH.float(), v_TGH.float()
        ends_TG2 = torch.stack((v_TGH.amin(-1), v_TGH.amax(-1)), -1)
        sound_TG1 = (k_TGH.isfinite() & v_TGH.isfinite()).all(-1, keepdim=True)
        ends_TG2 = ends_TG2.where(sound_TG1, torch.nan).bfloat16()  # a head with a fault shall read as one
        low_TG1, high_TG1 = ends_TG2.float().split(1, -1)
        keys = codebooks.encode(to_unit(k_TGH, place.low_GH, place.high_GH), place.keys_C)
        values = codebooks.encode(to_unit(v_TGH, low_TG1, high_TG1), place.values_C)
        packed = (codebooks.pack(codes, self._bits) for codes in (keys, values))
        written_TGX = torch.cat((*packed, ends_TG2.view(torch.uint8)), -1)
        page_T, offset_T = slots_T // self._page_tokens, slots_T % self._page_tokens
        self._tokens(arena_PX, place)[page_T, offset_T] = written_TGX.flatten(1)

    def read(self, arena_PX: Tensor, layer: int, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        place = self._places[layer]
        found_LX = self._tokens(arena_PX, place)[pages_B].flatten(0, 1)[:length]
        found_LGX = found_LX.unflatten(1, (len(place.low_GH), -1))
        half = (found_LGX.shape[-1] - _RANGE) // 2
        keys, values, ends = found_LGX.split((half, half, _RANGE), -1)
        low_LG1, high_LG1 = ends.contiguous().view(torch.bfloat16).float().split(1, -1)
        k_unit, v_unit = (
            book_C[codebooks.unpack(codes, self._bits, place.head_size)]
            for codes, book_C in ((keys, place.keys_C), (values, place.values_C))
        )
        k_LGH = from_unit(k_unit, place.low_GH, place.high_GH)
        return k_LGH.to(self._dtype), from_unit(v_unit, low_LG1, high_LG1).to(self._dtype)

    def _tokens(self, arena_PX: Tensor, place: _Place) -> Tensor:
        """[pages, tokens, bytes]"""
        return arena_PX[:, place.bytes].unflatten(1, (self._page_tokens, -1))


def _head_bytes(member: Member, bits: int) -> int:
    """Of one token's key and value of one head."""
    return 2 * bits * -(-member.head_size // 8) + _RANGE


@functools.lru_cache(maxsize=4)
def _read(path: str) -> codebooks.Codebooks:
    return codebooks.read(path)


def _place(path: str, books: codebooks.Codebooks, member: Member, bits: int, place: slice) -> _Place:
    """Raises ConfigError if the codebooks are those of another model."""
    layer = books.layers[member.layer] if member.layer < len(books.layers) else None
    if layer is None or any(
        head >= len(layer.low) or len(layer.low[head]) != member.head_size for head in member.kv_heads
    ):
        raise ConfigError(f"{path} holds the codebooks of another model; {codebooks.ADVICE}")
    low, high = ([rows[head] for head in member.kv_heads] for rows in (layer.low, layer.high))
    numbers = (low, high, layer.keys[str(bits)], layer.values[str(bits)])
    return _Place(place, member.head_size, *(torch.tensor(x, dtype=torch.float32) for x in numbers))
