"""What happens to a product behind it, where no kernel does it on the way out."""

from __future__ import annotations

from torch import Tensor


def apply(y_TO: Tensor, bias_O: Tensor | None, add_TO: Tensor | None, out_TO: Tensor | None) -> Tensor:
    """y + bias + add, in `out_TO` if given, which may be `add_TO`."""
    y_TO = y_TO if bias_O is None else y_TO + bias_O
    y_TO = y_TO if add_TO is None else y_TO + add_TO
    return y_TO if out_TO is None else out_TO.copy_(y_TO)
