"""Branches: a draft that is a tree, as chains that share rows but no page in which they differ.

    tokens of the sequence ... x y        rows of the span   y a b c d e        a - b - c
    guesses after y                                                             |   ` - d
                                                                                ` e
    table of the sequence      [ .. ][ x y a b ][ c ]    reads of the rows y a b c
    table of a branch          [ .. ][ x y a d ]                          d
    table of another           [ .. ][ x y e ]                            e

A row reads the pages of a table in which everything before it lies in order, as if its path were the only one: so no
kernel knows of trees, every codec, window and keeper works, and a row's bits are those of plain decoding. A guess is
written once per branch that goes through it. What is right stays where it is: the table of the branch becomes the
sequence's, and the others let go of their pages. A page that is begun is copied for each branch.

Paper   none: https://arxiv.org/abs/2305.09781 (SpecInfer) and https://arxiv.org/abs/2401.10774 (Medusa) mask a tree's
        rows within one pass, and move the keys and values of the path that was right
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.kv.tables import BlockTables
from headrace.types import Span


class Branch(NamedTuple):
    """A path to a guess that nothing follows."""

    guesses: tuple[int, ...]
    """From the first to the last, by their number in the draft."""
    own: int
    """How many of these, the last ones, no branch before has."""


class Stretch(NamedTuple):
    """Consecutive rows at consecutive positions that read one table."""

    table: int
    row: int
    start: int
    stop: int


class Write(NamedTuple):
    """Consecutive positions of one table that are written."""

    table: int
    start: int
    stop: int
    rows: Sequence[int]
    """Which row goes to each position; of a group of whole blocks, which are written from other pages, any."""


def branches(span: Span) -> tuple[Branch, ...]:
    """Of the span's draft, in the order of their last guesses; one that is empty where there is no draft. Most rows
    follow each other if the draft is in depth-first order."""
    if span.parents is None:
        return (Branch(tuple(range(len(span.draft))), len(span.draft)),)
    found, first = [], 0
    for guess in range(len(span.parents)):
        if guess + 1 < len(span.parents) and span.parents[guess + 1] == guess:
            continue
        found.append(Branch(_path(span.parents, guess), guess + 1 - first))
        first = guess + 1
    return tuple(found)


def ends(span: Span) -> list[int]:
    """Where each branch ends: the position after its last guess."""
    if span.parents is None:
        return [span.end]
    return [span.stop + len(branch.guesses) for branch in branches(span)]


def right_branch(span: Span, accepted: Sequence[int]) -> int:
    """The first branch that has all accepted guesses. accepted: tokens from the draft's root on, as far as they go."""
    guess = -1
    for token in accepted:
        following = next((child for child in span.below(guess) if span.draft[child] == token), None)
        if following is None:
            break
        guess = following
    return next(i for i, branch in enumerate(branches(span)) if guess < 0 or guess in branch.guesses)


def stretches(spans: Sequence[Span], tables: BlockTables) -> list[Stretch]:
    """What each row of a batch reads, all rows in order."""
    found, row = [], 0
    for span in spans:
        if span.parents is None:
            found.append(Stretch(span.seq, row, span.start, span.end))
            row += len(span)
            continue
        for table, branch in zip(tables.branches(span.seq), branches(span), strict=True):
            stop = span.stop + len(branch.guesses)
            first = span.start if table == span.seq else stop - branch.own
            found.append(Stretch(table, row, first, stop))
            row += stop - first
    return found


def writes(spans: Sequence[Span], tables: BlockTables, index: int) -> list[Write]:
    """What is stored of a group, number `index`: by the sequence's table all of a path, by another's what it does not
    share with that table."""
    found, row, group = [], 0, tables.groups[index]
    for span in spans:
        start, known = group.stored(span.start), range(row, row + span.stop - span.start)
        row += len(span)
        if span.parents is None:
            found.append(Write(span.seq, start, group.stored(span.end), range(known.start, row)))
            continue
        for table, branch in zip(tables.branches(span.seq), branches(span), strict=True):
            low = start if table == span.seq else _apart(tables, index, span.seq, table, start)
            high = group.stored(span.stop + len(branch.guesses))
            rows = (*known, *(known.stop + guess for guess in branch.guesses))
            found.append(Write(table, low, high, rows[max(0, low - span.start) : high - span.start]))
    return found


def _path(parents: Sequence[int], guess: int) -> tuple[int, ...]:
    path = []
    while guess >= 0:
        path.append(guess)
        guess = parents[guess]
    return tuple(reversed(path))


def _apart(tables: BlockTables, index: int, seq: int, table: int, start: int) -> int:
    """The first position from `start` on whose page the tables do not share."""
    mine, other = tables.live_pages(seq, index), tables.live_pages(table, index)
    size = tables.sizes.tokens[index]
    page = start // size
    while page < min(len(mine), len(other)) and mine[page] == other[page]:
        page += 1
    return max(start, page * size)
