"""Drafts: guesses that follow each other, or stand beside each other where one place has several.

A draft lists what matters most first, and a guess after the one that it follows: so as much of its beginning as there
is room for is a tree again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Draft(NamedTuple):
    """Guesses of what follows a sequence; empty for no idea."""

    tokens: tuple[int, ...] = ()
    """What matters most first: the last ones may be left out."""
    parents: tuple[int, ...] | None = None
    """As in Span: a tree; None is a chain."""
    laws: tuple[Tensor, ...] = ()
    """One per token, float64 [V]: what it was drawn from, with nothing but the drafter's own draws. Empty if the
    tokens were chosen in any other way."""


def pruned(draft: Draft, rows: int, depth: int) -> Draft:
    """The first `rows` of the guesses that lie no deeper than `depth`."""
    if draft.parents is None:
        return first(draft, range(max(0, min(rows, depth, len(draft.tokens)))))
    depths = list[int]()
    for parent in draft.parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return first(draft, [guess for guess, deep in enumerate(depths) if deep <= depth][: max(0, rows)])


def first(draft: Draft, guesses: range | list[int]) -> Draft:
    """These guesses of it, in this order: each after the one that it follows."""
    place = {guess: i for i, guess in enumerate(guesses)}
    tokens = tuple(draft.tokens[guess] for guess in guesses)
    laws = tuple(draft.laws[guess] for guess in guesses) if draft.laws else ()
    if draft.parents is None:
        return Draft(tokens, None, laws)
    parents = tuple(place.get(draft.parents[guess], -1) for guess in guesses)
    chain = all(parent == i - 1 for i, parent in enumerate(parents))
    return Draft(tokens, None if chain else parents, laws)


def depth_first(draft: Draft) -> Draft:
    """The same tree with each guess right after the one that it follows, where it is the first that does; guesses of
    one place stay in order."""
    if draft.parents is None:
        return draft
    below: dict[int, list[int]] = {}
    for guess, parent in enumerate(draft.parents):
        below.setdefault(parent, []).append(guess)
    order, left = list[int](), list(reversed(below.get(-1, [])))
    while left:
        order.append(left.pop())
        left += reversed(below.get(order[-1], []))
    return first(draft, order)
