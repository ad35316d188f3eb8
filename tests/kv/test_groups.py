"""Groups and page sizes: pages of equal bytes, whatever the groups store."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.kv.groups import MAX_GRANULE, GroupSpec, Member, size_pages
from headrace.kv.layouts.razor import Mean


def group(layers: int, heads: int = 1, size: int = 1) -> GroupSpec:
    return GroupSpec("g", tuple(Member(layer, tuple(range(heads)), size) for layer in range(layers)))


def plain_bytes(spec: GroupSpec, tokens: int) -> int:
    return -(-spec.elements_per_token * tokens * 4 // 64) * 64


def test_elements_are_keys_and_values_of_every_member() -> None:
    spec = GroupSpec("g", (Member(0, (0, 1), 8), Member(3, (2,), 4)))
    assert spec.elements_per_token == 2 * (2 * 8 + 1 * 4)


def test_one_group_has_pages_of_the_base() -> None:
    sizes = size_pages([group(4, 2, 8)], 16, plain_bytes)
    assert sizes.tokens == (16,) and sizes.granule == 16
    assert sizes.page_bytes == 4 * 2 * 2 * 8 * 16 * 4


def test_a_smaller_group_keeps_more_tokens_in_a_page_of_the_same_bytes() -> None:
    sizes = size_pages([group(6, 2, 8), group(2, 2, 8)], 4, plain_bytes)
    assert sizes.tokens == (4, 12) and sizes.granule == 12
    assert sizes.page_bytes == plain_bytes(group(6, 2, 8), 4)


def test_uneven_multiples_fall_back_to_powers_of_two_rather_than_a_huge_granule() -> None:
    groups = [group(7 * 5 * 3, 1, 16), group(5 * 3, 1, 16), group(7 * 3, 1, 16), group(3, 1, 16)]
    sizes = size_pages(groups, 16, plain_bytes)
    assert sizes.tokens == (
        16,
        64,
        64,
        512,
    )  # 7, 5 and 35 times the base would meet at 560 tokens, not at 512
    assert sizes.granule == 512


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(
        st.builds(group, st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 3, 16, 16])),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_pages_hold_what_they_promise(groups: list[GroupSpec], base: int) -> None:
    sizes = size_pages(groups, base, plain_bytes)
    for spec, tokens in zip(groups, sizes.tokens, strict=True):
        assert plain_bytes(spec, tokens) <= sizes.page_bytes, "a page is too small"
        assert tokens % base == 0 and sizes.granule % tokens == 0
    if not any(spec.elements_per_token % 16 for spec in groups):  # nothing is rounded up
        assert min(sizes.tokens) == base, "the largest entries have the base"
    assert sizes.granule == math.lcm(*sizes.tokens) <= MAX_GRANULE
    assert sizes.page_bytes == max(plain_bytes(spec, base) for spec in groups)


# ---- blocks, and the rest ----


def half_bytes(spec: GroupSpec, tokens: int) -> int:
    """Of a codec that stores blocks in a quarter of what the rest takes."""
    return plain_bytes(spec, tokens) // (4 if spec.holds == "blocks" else 1)


def test_a_block_is_a_page_and_the_rest_has_parts_of_it() -> None:
    blocks, rest = group(4, 2, 16).split(64)
    sizes = size_pages([blocks, rest], 4, half_bytes)
    assert sizes.tokens == (64, 16) and sizes.granule == 64
    assert sizes.page_bytes == half_bytes(blocks, 64) == half_bytes(rest, 16)
    small = size_pages([*group(4, 2, 16).split(64), group(8, 2, 16)], 32, half_bytes)
    assert small.tokens == (256, 64, 32), (
        "the largest entries have the base, others whole blocks and whole parts"
    )


def test_pages_that_do_not_divide_a_block_are_refused() -> None:
    with pytest.raises(ConfigError, match="use 8"):
        size_pages(group(4, 2, 16).split(64), 24, half_bytes)


@pytest.mark.parametrize("sink", [0, 3, 11])
@pytest.mark.parametrize("window", [None, 5, 20])
def test_each_position_is_read_from_one_of_the_two(window: int | None, sink: int) -> None:
    """And what may still be read is kept: also by a fork that runs the newest token again."""
    whole = replace(group(2, 1, 8), window=window, sink=sink)
    blocks, rest = whole.split(8)
    for position in range(50):
        seen = [p for p in range(position + 1) if window is None or p > position - window or p < sink]
        assert positions(whole.readable(position, position + 1)) == seen
        parts = [positions(part.readable(position, position + 1)) for part in (blocks, rest)]
        assert parts[0] + parts[1] == seen, "in order, none twice, none left out"
        assert all(p < blocks.stored(position) for p in parts[0]), "a block is read before it is whole"
        for part, read in ((whole, seen), (blocks, parts[0]), (rest, parts[1])):
            for computed in (position, position + 1):
                kept = set(positions(part.kept(computed))) | set(range(computed, position + 1))
                assert set(read) <= kept, "what is read was let go of"
    assert rest.behind == 8 and blocks.behind == window


@pytest.mark.parametrize("sink", [0, 8])
@pytest.mark.parametrize("window", [8, 24])
def test_each_position_is_read_or_has_gone_into_the_record(window: int, sink: int) -> None:
    """And the record is kept for whoever may still read it, as the window is for what it is made of."""
    spec = replace(group(2, 1, 8), window=window, sink=sink, summary=Mean(8))
    records = spec.records()
    for position in range(90):
        left, start = spec.left(position), position // 8 * 8
        seen = positions(spec.readable(position, position + 1))
        assert seen == [p for p in range(position + 1) if p < sink or p >= sink + left]
        assert len(seen) <= sink + window and (left == 0 or seen[sink] % 8 == 0)
        assert spec.alike(position) == start + 8
        read = records.readable(position, position + 1)
        assert read == (((start - 8, start),) if left else ())
        for computed in (position, position + 1):
            kept = set(positions(records.kept(computed))) | set(range(computed, position + 1))
            assert set(positions(read)) <= kept, "a record was let go of"
            still = set(positions(spec.kept(computed))) | set(range(computed, position + 1))
            leaving = range(max(sink, start + 8 - window), start + 16 - window)
            assert set(leaving) & set(range(position + 1)) <= still, "what a record is made of was let go of"
    assert records.stored(23) == 16 and records.behind == 16


def test_a_record_may_need_several_pages() -> None:
    """As many as divide its block, so that a page stands for a part of the block's tokens."""
    spec = replace(group(2, 2, 16), window=24, sink=8, summary=Mean(8))
    for wanted in (1, 3):
        sizes = size_pages(
            [spec, spec.records()], 4, lambda g, n, w=wanted: 1024 * n * (1 if g.holds == "all" else w)
        )
        assert sizes.tokens == (4, 4 if wanted == 1 else 1) and sizes.granule == 8
    with pytest.raises(ConfigError, match="use 1"):
        size_pages([spec, spec.records()], 3, lambda g, n: 64)


def positions(intervals: tuple[tuple[int, int], ...]) -> list[int]:
    return [p for start, stop in intervals for p in range(start, stop)]
