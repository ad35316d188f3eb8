"""What a sequence holds of the pool, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.kv.pool import AWAY, FREED


@dataclass(frozen=True, slots=True)
class Holding:
    """What a sequence has, or would have after admission: the numbers that a policy plans with."""

    computed: int
    """Tokens whose keys and values exist."""
    listed: tuple[int, ...]
    """Per group, length of the block table (pages freed on the way included)."""
    live: tuple[int, ...]
    """Per group, pages really held."""
    brings: int = 0
    """Pages that admission takes out of what is available: cached ones it pins, or swapped ones it brings back."""
    copies: int = 0
    """Pages that must be copied before the next token can be written."""


def live(table: list[list[int]]) -> list[int]:
    """Pages that are here."""
    return [page for pages in table for page in pages if page not in (FREED, AWAY)]


def lengths(table: list[list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Per group: entries listed, and those of them that are live."""
    return tuple(map(len, table)), tuple(len(pages) - pages.count(FREED) for pages in table)
