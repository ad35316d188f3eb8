"""The layouts that there are: who shares a table with whom, and what it saves."""

from __future__ import annotations

import pytest

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.kv.layouts import SLOT
from headrace.layer.positions import SLOT as POSITIONS

CONTEXT = 64


def model(*windows: int | None) -> Architecture:
    blocks = tuple(
        Block(
            attention=Attention(
                heads=4,
                kv_heads=2,
                head_size=8,
                scale=1.0,
                positions=POSITIONS.make("rope"),
                theta=10_000.0,
                window=window,
            ),
            mlp=Mlp(width=8),
        )
        for window in windows
    )
    return Architecture(family="llama", vocab=8, width=8, context=CONTEXT, blocks=blocks, norm_eps=1e-5)


def split(layout: str, *windows: int | None) -> list[tuple[int | None, list[int]]]:
    """(window, layers) of each group."""
    return [(g.window, [m.layer for m in g.members]) for g in SLOT.make(layout).groups(model(*windows))]


@pytest.mark.parametrize(
    ("windows", "groups"),
    [
        ((None, None), [(None, [0, 1])]),
        ((8, 8, None), [(None, [2]), (8, [0, 1])]),
        ((20, 8, None, 20), [(None, [2]), (8, [1]), (20, [0, 3])]),
        ((8,), [(8, [0])]),
        ((CONTEXT - 1, None), [(None, [1]), (CONTEXT - 1, [0])]),
        ((CONTEXT, None, 2 * CONTEXT), [(None, [0, 1, 2])]),
    ],
)
def test_windows_gives_each_window_a_table_of_its_own(
    windows: tuple[int | None, ...], groups: list[tuple[int | None, list[int]]]
) -> None:
    """Full attention first; a window as long as the context never slides."""
    assert split("windows", *windows) == groups


def test_single_has_one_table_for_everything() -> None:
    assert split("single", 8, None, 20) == [(None, [0, 1, 2])]
