"""One block alone, in plain PyTorch, on one text after the other; whoever wants may see what its products read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.architecture import Architecture, Attention
from headrace.forward.batch import one_text
from headrace.forward.decoder import make_block
from headrace.kernels.before import Before, apply
from headrace.types import Batch
from headrace.weight.assemble import Weights, places
from headrace.weight.piece import Tell


class BlockPass:
    """A block with these weights, float32 or float64, under their names without the block's number."""

    def __init__(self, architecture: Architecture, layer: int, tensors: Mapping[str, Tensor]) -> None:
        at = f"blocks.{layer}."
        placed, _ = places(architecture)
        stacks: dict[str, list[Tensor]] = {}
        for name, place in placed.items():  # parts of a stack in their order
            if name.startswith(at):
                stacks.setdefault(place.name, []).append(tensors[name.removeprefix(at)])
        whole = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in stacks.items()}
        self._heard = _Heard()
        matrices = {
            name: _Matrix(t, name.removeprefix(at).removesuffix(".weight"), self._heard)
            for name, t in whole.items()
            if t.ndim == 2
        }
        vectors = {name: t for name, t in whole.items() if t.ndim == 1}
        first = next(iter(whole.values()))
        self._block = make_block(architecture, layer, Weights(matrices, vectors, first.dtype, first.device))
        spec = architecture.blocks[layer].attention
        self._kv = _OneText(spec, self._heard)
        self._rotary = spec.positions.start(
            spec.head_size, spec.theta, architecture.context, first.device, first.dtype
        )

    @torch.inference_mode()
    def __call__(self, x_TD: Tensor, tell: Tell | None = None) -> Tensor:
        """Hidden states before the block -> behind it, of one text from its start. x_TD stays as it is."""
        self._heard.tell = tell
        batch = one_text(torch.zeros(len(x_TD), dtype=torch.int64, device=x_TD.device))
        return self._block(x_TD.clone(), self._rotary.at(batch.positions_T), batch, self._kv)


class _Heard:
    """Who listens now."""

    tell: Tell | None = None


class _Matrix:
    """Weights as they are (headrace.weight.matrix.Matrix); says what it multiplies."""

    __slots__ = ("_heard", "_name", "nbytes", "weight_OI")

    def __init__(self, weight_OI: Tensor, name: str, heard: _Heard) -> None:
        self.weight_OI, self.nbytes = weight_OI, weight_OI.nbytes
        self._name, self._heard = name, heard

    def multiply(
        self,
        x: Tensor,
        bias_O: Tensor | None = None,
        *,
        before: Before = None,
        add_TO: Tensor | None = None,
        out_TO: Tensor | None = None,
    ) -> Tensor:
        x_TI = apply(before, x)
        if self._heard.tell is not None:
            self._heard.tell(self._name, x_TI)
        y_TO = F.linear(x_TI, self.weight_OI, bias_O)
        return y_TO if add_TO is None else y_TO.add_(add_TO)

    def rows(self, ids_T: Tensor) -> Tensor:
        return self.weight_OI[ids_T]


class _OneText:
    """Keys and values of one text in one batch (headrace.layer.attention.KeysValues)."""

    def __init__(self, spec: Attention, heard: _Heard) -> None:
        self._spec, self._heard = spec, heard

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        if self._heard.tell is not None:
            self._heard.tell("keys", k_TGH)
        spec, at_T = self._spec, batch.positions_T
        hidden_TT = at_T[None] > at_T[:, None]
        if spec.window is not None:
            hidden_TT |= at_T[None] <= at_T[:, None] - spec.window
        each, out_TNH = spec.heads // spec.kv_heads, torch.empty_like(q_TNH)
        for head in range(spec.heads):  # one at a time: T x T numbers
            g = head // each
            scores_TT = (q_TNH[:, head] @ k_TGH[:, g].T) * spec.scale
            out_TNH[:, head] = scores_TT.masked_fill_(hidden_TT, -torch.inf).softmax(-1) @ v_TGH[:, g]
        return out_TNH
