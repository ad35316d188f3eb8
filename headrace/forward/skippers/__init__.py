"""Slot `skipper`: what a forward pass leaves out: neurons of an MLP, whole layers, or tokens of a prompt in some.

Add one: a file here with a frozen dataclass that has `card` and `adapt`, and a line in the index.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from headrace.architecture import Architecture
from headrace.slots import Card, Slot


class Skipper(Protocol):
    """Leaves something out of every forward pass. What it leaves out is neither computed nor read."""

    card: ClassVar[Card]

    def adapt(self, architecture: Architecture) -> Architecture:
        """The model with what may be left out written into its blocks, and nothing else changed: `Mlp.threshold`, below
        which neurons leave; `Block.reach`, beyond which tokens leave a layer out; `Block.thinning`, how much of a
        prompt goes on from there. Equal for a model that it is written into already. Raises ConfigError for a profile
        that is missing or another model's, and for a model that it does not fit.

        Weights are loaded, and layers made, of what this returns. A token that runs in a layer reads there what earlier
        tokens stored: as what reaches further reached everything before, it is always there.
        """
        ...


SLOT = Slot(
    name="skipper",
    asks="what a forward pass leaves out",
    index={
        "cats": "headrace.forward.skippers.cats:Cats",
        "skipdecode": "headrace.forward.skippers.skipdecode:SkipDecode",
        "lazyllm": "headrace.forward.skippers.lazyllm:LazyLLM",
    },
    default="",
)
