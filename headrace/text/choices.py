"""What follows a prompt, as tokens, and how likely the model finds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """One text, as the continuation of a prompt."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Raw log-probability of each, given the prompt and those before it."""

    @property
    def logprob(self) -> float:
        """Of all of it."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """Per token, so that long ones can be compared with short ones."""
        return self.logprob / len(self.logprobs)


def continuation(prompt: Sequence[int], whole: Sequence[int]) -> list[int] | None:
    """The tokens by which `whole`, the prompt's text and its continuation encoded together, goes on after `prompt`.

    None if it does not begin with the prompt's tokens, because some token reaches over the seam: then the continuation
    has to be encoded alone. That is how evaluation harnesses split a text, too.
    """
    size = len(prompt)
    return list(whole[size:]) if len(whole) > size and list(whole[:size]) == list(prompt) else None
