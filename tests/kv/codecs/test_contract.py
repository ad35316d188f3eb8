"""Every codec gives back what was written, keeps to its own bytes, and keeps nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.kv.codecs import SLOT
from headrace.kv.groups import GroupSpec, Member
from tests.kv.contract import members
from tests.whole import models

PAGES = 8
NAN = 0xFF
"""What a free page is filled with in tests: NaN in every float format."""
CLOSE = 0.75
"""A lossy codec's error, as a share of what was written (root of summed squares); forgetting everything has 1."""
GROUPS = {
    "one-layer": GroupSpec("one", (Member(0, (0, 1), 32),)),
    "uneven-layers": GroupSpec(
        "uneven", (Member(4, (0, 2, 3), 64), Member(1, (1,), 32), Member(7, (0, 1), 16)), window=9
    ),
}

STORES = [("one-layer", torch.float32, 3), ("one-layer", torch.bfloat16, 16), ("one-layer", torch.float64, 1)]
STORES += [("uneven-layers", torch.float32, 16), ("uneven-layers", torch.bfloat16, 1)]
STORES += [("uneven-layers", torch.float64, 3)]
"""Every two of group, dtype and tokens per page."""

BOOKS = models.books(((2, 32), (2, 32), (0, 0), (0, 0), (4, 64), (0, 0), (0, 0), (2, 16)))
"""Of a model with the layers of both groups."""
MADE = [pytest.param(f"kvquant:codebooks={BOOKS},bits={bits}", id=f"kvquant-{bits}") for bits in (4, 2)]

each_codec = pytest.mark.parametrize("name", [*members(SLOT), *MADE])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
each_store = pytest.mark.parametrize(
    ("group", "dtype", "tokens"),
    [
        pytest.param(GROUPS[group], dtype, tokens, id=f"{group}-{dtype}-{tokens}")
        for group, dtype, tokens in STORES
    ],
)

Entries = dict[int, tuple[Tensor, Tensor]]
"""Keys and values per layer."""


class Store:
    """A codec at work on an arena of poisoned pages, wider than the codec asked for: other groups may need more."""

    def __init__(self, name: str, group: GroupSpec, tokens: int, dtype: torch.dtype) -> None:
        self.codec = SLOT.make(name)
        self.block = self.codec.block_tokens or 1
        """Tokens that are written together."""
        tokens *= self.block
        self.group, self.tokens, self.dtype = group, tokens, dtype
        width = self.codec.page_bytes(group, tokens, dtype) + 64
        self.arena = torch.full((PAGES, width), NAN, dtype=torch.uint8)
        self.live = self.codec.start(group, tokens, dtype)

    @property
    def exact(self) -> bool:
        return bool(self.codec.card.exact == "bits")

    def entries(self, count: int, seed: int) -> Entries:
        generator = torch.Generator().manual_seed(seed)

        def random(member: Member) -> Tensor:
            shape = (count, len(member.kv_heads), member.head_size)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        return {member.layer: (random(member), random(member)) for member in self.group.members}

    def slots(self, pages: list[int], first: int, last: int) -> Tensor:
        """Slots of tokens [first, last) of a sequence in these pages."""
        return torch.tensor(
            [pages[t // self.tokens] * self.tokens + t % self.tokens for t in range(first, last)]
        )

    def write(self, entries: Entries, pages: list[int], first: int, last: int) -> None:
        for layer, (k, v) in entries.items():
            self.live.write(self.arena, layer, k[first:last], v[first:last], self.slots(pages, first, last))

    def read(self, layer: int, pages: list[int], length: int, live: Any = None) -> tuple[Tensor, Tensor]:
        k, v = (live or self.live).read(self.arena, layer, torch.tensor(pages), length)
        return k, v

    def expect(self, entries: Entries, pages: list[int], length: int) -> None:
        for layer, written in entries.items():
            for got, wanted in zip(self.read(layer, pages, length), written, strict=True):
                self.same(got, wanted[:length])

    def same(self, got: Tensor, wanted: Tensor) -> None:
        assert got.shape == wanted.shape and got.dtype == self.dtype
        if self.exact:
            assert torch.equal(got, wanted)
        else:
            assert bool(got.isfinite().all())
            assert (got.double() - wanted.double()).norm() <= CLOSE * wanted.double().norm()


@pytest.fixture
def store(name: str, group: GroupSpec, tokens: int, dtype: torch.dtype) -> Store:
    return Store(name, group, tokens, dtype)


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    return each_codec(each_store(test))


@each_codec
@each_dtype
def test_page_bytes_are_whole_cache_lines_and_never_shrink(name: str, dtype: torch.dtype) -> None:
    codec = SLOT.make(name)
    for group in GROUPS.values():
        sizes = [codec.page_bytes(group, tokens, dtype) for tokens in range(1, 65)]
        assert sizes == [codec.page_bytes(group, tokens, dtype) for tokens in range(1, 65)]
        assert all(size > 0 and size % 64 == 0 for size in sizes), group.name
        assert sizes == sorted(sizes), group.name


@every_case
def test_entries_come_back_in_the_order_of_the_pages(store: Store) -> None:
    """Pages are neither consecutive nor ascending, and the last one is not full."""
    pages, length = [5, 1, 6], 3 * store.tokens
    entries = store.entries(length, seed=1)
    store.write(entries, pages, 0, length)
    for part in {length, max(1, length - 1), store.tokens}:
        store.expect(entries, pages[: -(-part // store.tokens)], part)
    turned = pages[::-1]
    order = [t for page in reversed(range(3)) for t in range(page * store.tokens, (page + 1) * store.tokens)]
    store.expect({layer: (k[order], v[order]) for layer, (k, v) in entries.items()}, turned, length)


@every_case
def test_rows_or_blocks_may_come_one_by_one(store: Store) -> None:
    pages, length = [2, 7], 2 * store.tokens
    entries = store.entries(length, seed=2)
    for token in range(0, length, store.block):
        store.write(entries, pages, token, token + store.block)
        store.expect(entries, pages[: token // store.tokens + 1], token + store.block)


@every_case
def test_rows_of_several_sequences_may_come_at_once(store: Store) -> None:
    """The rows of one call go to pages of different sequences, in turn."""
    entries = store.entries(2 * store.tokens, seed=3)
    turns = [
        t
        for first in range(0, store.tokens, store.block)
        for start in (first, store.tokens + first)
        for t in range(start, start + store.block)
    ]
    slots = store.slots([4, 0], 0, 2 * store.tokens)[turns]
    for layer, (k, v) in entries.items():
        store.live.write(store.arena, layer, k[turns], v[turns], slots)
    store.expect(entries, [4, 0], 2 * store.tokens)


@every_case
def test_layers_do_not_overlap(store: Store) -> None:
    """Each layer is written last once: whatever it overwrote would show."""
    entries = store.entries(store.tokens, seed=4)
    for last in entries:
        for layer in [other for other in entries if other != last] + [last]:
            store.write({layer: entries[layer]}, [3], 0, store.tokens)
        store.expect(entries, [3], store.tokens)


@every_case
def test_other_pages_and_other_slots_stay_as_they_are(store: Store) -> None:
    entries, others = store.entries(store.tokens, seed=5), store.entries(store.tokens, seed=6)
    for page in range(PAGES):
        store.write(others, [page], 0, store.tokens)
    before = store.arena.clone()
    last = store.tokens - store.block
    store.write(entries, [2], last, store.tokens)
    changed = (store.arena != before).any(1).nonzero().flatten().tolist()
    assert changed == [2]
    width = store.codec.page_bytes(store.group, store.tokens, store.dtype)
    assert bool((store.arena[:, width:] == NAN).all()), "bytes beyond its own were written"
    mixed = {
        layer: (
            torch.cat((others[layer][0][:last], k[last:])),
            torch.cat((others[layer][1][:last], v[last:])),
        )
        for layer, (k, v) in entries.items()
    }
    store.expect(mixed, [2], store.tokens)


@every_case
def test_a_slot_written_again_holds_the_new_entry(store: Store) -> None:
    """A rejected draft is overwritten; a page comes back from the free list."""
    old, new = store.entries(store.tokens, seed=7), store.entries(store.tokens, seed=8)
    store.write(old, [1], 0, store.tokens)
    store.write(new, [1], 0, store.tokens)
    store.expect(new, [1], store.tokens)


@every_case
def test_everything_lies_in_the_page(store: Store) -> None:
    """A copy of a page reads the same, by a codec started anew: forks copy pages, and swapping moves them."""
    entries = store.entries(store.tokens, seed=9)
    store.write(entries, [1], 0, store.tokens)
    store.arena[6] = store.arena[1]
    store.arena[1] = NAN
    fresh = store.codec.start(store.group, store.tokens, store.dtype)
    for layer, written in entries.items():
        for got, wanted in zip(store.read(layer, [6], store.tokens, fresh), written, strict=True):
            store.same(got, wanted)


@pytest.mark.parametrize("name", members(SLOT))
@each_dtype
def test_an_exact_codec_takes_odd_shapes_and_odd_numbers(name: str, dtype: torch.dtype) -> None:
    """Infinities, zeros of both signs and the smallest numbers come back as they were."""
    store = Store(name, GroupSpec("odd", (Member(0, (0,), 5), Member(1, (0, 1, 2), 3))), 3, dtype)
    if not store.exact:
        pytest.skip("not exact")
    info = torch.finfo(dtype)
    values = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, info.tiny, info.max, -info.max], dtype=dtype)
    entries = {
        layer: tuple(values.repeat(9)[: part.numel()].view(part.shape) for part in parts)
        for layer, parts in store.entries(3, seed=0).items()
    }
    for layer, (k, v) in entries.items():
        store.live.write(store.arena, layer, k, v, store.slots([5], 0, 3))
    for layer, written in entries.items():
        for got, wanted in zip(store.read(layer, [5], 3), written, strict=True):
            assert torch.equal(got.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))
