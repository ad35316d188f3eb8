"""What an engine counts, as it tells others: the same object in this process and over the server's socket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What an engine has done since it started."""

    steps: int = 0
    prompt_tokens: int = 0
    """Tokens of admitted prompts."""
    cached_tokens: int = 0
    """Of these, tokens found in the prefix cache."""
    dropped_tokens: int = 0
    """Of these, tokens that a shrinker left out."""
    computed_tokens: int = 0
    """Tokens run through the model, of prompts and outputs, recomputed ones included."""
    generated_tokens: int = 0
    drafted_tokens: int = 0
    """Of the computed tokens, guesses of what comes next."""
    accepted_tokens: int = 0
    """Of these, right ones: each saved its sequence a step."""
    second_tokens: int = 0
    """Of the generated tokens, those of a switcher's second model."""
    switches: int = 0
    """How often a sequence's turn went from one model to the other."""
    recomputes: int = 0
    """Sequences paused by dropping their pages."""
    swaps: int = 0
    """Sequences paused by moving their pages to host memory."""
    demoted_pages: int = 0
    """Pages that the pool gave up and a tier took."""
    promoted_pages: int = 0
    """Pages that came back from there."""
    tier_written_bytes: int = 0
    tier_read_bytes: int = 0
    """Those that were read ahead for nobody included."""


@dataclass(frozen=True)
class Stats:
    """The engine at one moment."""

    running: int
    waiting: int
    swapped: int
    pages: int
    """Pages in the pool."""
    free_pages: int
    cached_pages: int
    """Pages that only the prefix cache holds."""
    counters: Counters
    running_adapters: tuple[str, ...] = ()
    """Names of the adapters of running sequences."""
    waiting_adapters: tuple[str, ...] = ()

    @property
    def kv_usage(self) -> float:
        """Share of the pool that living sequences hold."""
        return 1 - (self.free_pages + self.cached_pages) / max(self.pages, 1)
