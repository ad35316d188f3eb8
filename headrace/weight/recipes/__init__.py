"""Slot `recipe`: how the codes of a model's weights are chosen, once and for all, by `headrace quantize`.

Add one: a file here with a frozen dataclass that has `card`, `calibrated`, `folds`, `plan`, `rewrite` and `choose`, and
a line in the index. headrace/weight/calibrate.py calls them, piece by piece; what they share lies in headrace/weight/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from headrace.slots import Card, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.architecture import Architecture
    from headrace.weight.codes import Coded
    from headrace.weight.piece import Piece, Seen


class Recipe(Protocol):
    """How weights become codes. The same weights and rows give the same codes."""

    card: ClassVar[Card]
    calibrated: ClassVar[bool]
    """Whether `choose` reads what blocks saw of calibration text; else none is run."""
    folds: ClassVar[bool]
    """Whether products read something else afterwards (scaled, rotated), so that no adapter of the model fits."""

    def plan(self, architecture: Architecture) -> Architecture:
        """What the model becomes, mostly itself. Pure. Raises ConfigError for a model that it cannot be used on."""
        ...

    def rewrite(self, piece: Piece) -> None:
        """Changes the tensors of a block, or of the ends, before any is run: floats of any dtype. The model computes
        the same, up to rounding."""
        ...

    def choose(self, piece: Piece, seen: Seen, form: Coded) -> dict[str, Tensor]:
        """What a folder keeps of each of a block's matrices (`piece.matrices()`): uint8 [O, row_bytes] by name.

        May change the piece's tensors and `seen` as in `rewrite`; its norms and biases are kept as they are then.
        """
        ...


SLOT = Slot(
    name="recipe",
    asks="how the codes of stored weights are chosen (headrace quantize)",
    index={
        "rtn": "headrace.weight.recipes.rtn:Rtn",
        "awq": "headrace.weight.recipes.awq:Awq",
        "gptq": "headrace.weight.recipes.gptq:Gptq",
        "qoq": "headrace.weight.recipes.qoq:Qoq",
    },
    default="",
)
