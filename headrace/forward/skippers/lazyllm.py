"""Tokens of the prompt leave between layers, those that its last token attends to least; decoding calls some back.

Paper   https://arxiv.org/abs/2407.14057 (LazyLLM)
Idea    For the next token, most of a long prompt hardly matters, the less so the higher the layer. At a few depths, the
        last token's attention, in the mean over heads, says which tokens of the prompt go on: fewer rows are computed
        above, and fewer keys are read. Who leaves is parked with the state it had. A token that is generated looks
        again: those it would choose that are missing in the next layers come back, from their parked states.
Trades  The first token comes sooner, and decoding reads less, but pays for the looks and for who comes back. Pages
        are held as if all tokens were everywhere, and beside them a state per token that left, outside the KV pool.
        A prompt in chunks is read by the first layers alone until its last chunk, which runs all the others: one long
        step. Nothing is shared between requests or samples: each reads its prompt itself. If nobody comes back, the
        model in the box, of 8 layers, finds 4 passkeys of 12.
Differs In the paper a token that is not chosen by a step is not read by it, though it was computed; here whoever was
        computed is read from then on. Who comes back sees the prompt's tokens that stayed, and itself, and not others
        that came back: so what it is does not depend on who called it, and guesses and pauses change nothing. No more
        than `returns` come back at once. Shares fall evenly from depth to depth; the paper tunes them. Prompts that
        are short, or whose own log-probabilities or embedding are asked for, stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headrace.architecture import Architecture, Thinning
from headrace.errors import ConfigError
from headrace.slots import Card

_PLACES = "layers have different tokens, and where one lies is not its position"


@dataclass(frozen=True, kw_only=True)
class LazyLLM:
    """Where tokens leave, and how many."""

    card: ClassVar[Card] = Card(
        slot="skipper",
        exact="lossy",
        paper="https://arxiv.org/abs/2407.14057",
        breaks=(
            (
                "prefix_cache",
                "upper layers have some tokens of a prompt only, and which depends on its end; use --no-prefix-cache",
            ),
            ("sliding_window", _PLACES),
            ("whole_blocks", f"{_PLACES}; use int8"),
            ("kv-codec=kvquant", f"{_PLACES}; use int8"),
            ("positions=dca", _PLACES),
            *((f"kv-keeper={name}", _PLACES) for name in ("streaming", "d2o")),
            *((f"kv-layout={name}", _PLACES) for name in ("duo", "razor")),
            *((f"kv-selector={name}", _PLACES) for name in ("landmarks", "squeezed", "vslash")),
            *(
                (f"drafter={name}", f"{_PLACES}, least of all in a tree; use copyspec")
                for name in ("recycle", "draft_tree")
            ),
        ),
    )
    keep: float = 0.3
    """Share of the prompt's tokens that run in the last layers."""
    steps: int = 3
    """Depths at which tokens leave, as many each time."""
    first: float = 0.3
    """Share of the layers, the first ones, in which every token runs."""
    returns: int = 4
    """Most tokens that come back at each depth for one generated token; 0: who left stays away."""
    shortest: int = 128
    """Shorter prompts stay whole."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 < self.first < 1:
            raise ValueError(
                f"keep={self.keep} must be above 0, at most 1, and first={self.first} above 0, below 1"
            )
        if self.steps < 1 or self.returns < 0 or self.shortest < 1:
            raise ValueError(
                f"steps={self.steps} and shortest={self.shortest} must be at least 1, and returns={self.returns} "
                "not below 0"
            )

    def adapt(self, architecture: Architecture) -> Architecture:
        count = len(architecture.blocks)
        first = max(1, round(self.first * count))
        if count - first < self.steps:
            raise ConfigError(
                f"lazyllm: steps={self.steps} do not fit in the {count - first} of {count} layers that "
                f"first={self.first} leaves: lower steps or first"
            )
        floors = {first + step * (count - first) // self.steps: step + 1 for step in range(self.steps)}
        blocks = tuple(
            replace(block, thinning=self._thinning(floors[layer]) if layer in floors else None)
            for layer, block in enumerate(architecture.blocks)
        )
        return replace(architecture, blocks=blocks)

    def _thinning(self, step: int) -> Thinning:
        share = 1 - (1 - self.keep) * step / self.steps
        return Thinning(share=share, returns=self.returns, shortest=self.shortest)
