"""Slot `switcher`: which of two models says the next token of a sequence.

Add one: a file here with a frozen dataclass that has `card`, `model` and `init`, and a line in the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor


class State(Protocol):
    """What a sequence's switcher remembers. Never changes: forks share it, and a step that fails leaves no trace."""

    @property
    def large(self) -> bool:
        """Whose turn it is: the engine's own model's, or the second one's."""
        ...

    def hear(self, logits_V: Tensor) -> State:
        """logits_V: for the next token, of the model whose turn it is, before any processor; finite; not to be kept.

        If it is still that model's turn, the token is chosen from these logits. If not, they are dropped, the other
        model reads what it has not read yet, and is heard at the same place: it must then speak, or nothing would ever
        come.
        """
        ...


class Switcher(Protocol):
    """How it is decided."""

    card: ClassVar[Card]

    @property
    def model(self) -> str:
        """The second model: a model in the box, or a folder."""
        ...

    def init(self) -> State:
        """Of a sequence that nothing has been said of. Whose turn it is reads the prompt first."""
        ...


SLOT = Slot(
    name="switcher",
    asks="which of two models says the next token",
    index={"ead": "headrace.switch.switchers.ead:Ead"},
    default="",
)
