"""Profiles of heads: how much of its attention each kv head spends on what it saw long ago.

Random tokens, repeated: a head that looks for the last time that its token was there (echo), or for what came next
then (induction), finds it exactly one period back. Nothing else in the text means anything: what a head puts there is
what it retrieves.

Paper   https://arxiv.org/abs/2407.15891 (RazorAttention); https://arxiv.org/abs/2209.11895 (induction heads)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from headrace import artefact
from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.kv.groups import GroupSpec, Member
from headrace.types import Batch

MAX_BYTES = 16 << 20
ADVICE = "make one: headrace profile --model DIR --out FILE"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    family: str
    scores: list[list[float]]
    """Per layer, per kv head: 0 to 1."""
    spread: list[float] = []
    """Per layer: 0 to 1, how unevenly its tokens are attended to."""


class Probe:
    """Keys and values of one text in one batch (headrace.layer.attention.KeysValues), and what its heads attend to."""

    def __init__(self, architecture: Architecture, period: int) -> None:
        self._blocks, self._period = architecture.blocks, period
        self.scores: list[list[float]] = []
        """Per layer so far, per kv head: the mean share of a query's attention one period back, of its best head."""
        self._variances: list[list[float]] = []

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Attention of every row to all before it, within the layer's window."""
        spec, T = self._blocks[layer].attention, len(q_TNH)
        each = spec.heads // spec.kv_heads
        positions_T = batch.positions_T
        hidden_TT = positions_T[None] > positions_T[:, None]
        if spec.window is not None:
            hidden_TT |= positions_T[None] <= positions_T[:, None] - spec.window
        out_TNH, found = torch.empty_like(q_TNH), []
        variances: list[float] = []
        late = torch.arange(self._period, T)
        for head in range(spec.heads):  # one at a time: T x T numbers
            g = head // each
            scores_TT = (q_TNH[:, head].float() @ k_TGH[:, g].float().T) * spec.scale
            weights_TT = scores_TT.masked_fill_(hidden_TT, -torch.inf).softmax(-1)
            out_TNH[:, head] = (weights_TT @ v_TGH[:, g].float()).to(out_TNH.dtype)
            echo = weights_TT[late, late - self._period]
            induction = weights_TT[late, late - self._period + 1]
            found.append(float(torch.maximum(echo, induction).mean()))
            variances.append(float(weights_TT.sum(0).var()))
        self._variances.append(variances)
        self.scores.append([max(found[g * each : (g + 1) * each]) for g in range(spec.kv_heads)])
        return out_TNH

    def spread(self) -> list[float]:
        """Per layer: the variance of what its tokens draw in all, from the least of a head (0) to the most (1), in the
        mean over its heads. (D2O, https://arxiv.org/abs/2406.13035.)"""
        every = [variance for layer in self._variances for variance in layer]
        low, width = min(every), max(every) - min(every) or 1.0
        return [sum((x - low) / width for x in layer) / len(layer) for layer in self._variances]


def write_profile(
    path: Path, architecture: Architecture, scores: list[list[float]], spread: list[float] | None = None
) -> None:
    """As read_profile and read_spread read it."""
    artefact.write(path, _File(architecture.family, scores, spread or []))


def read_profile(path: str, architecture: Architecture) -> list[list[float]]:
    """Scores per layer and kv head. Raises ConfigError if the file is not of a model of this shape."""
    found = _read(path)
    heads = [block.attention.kv_heads for block in architecture.blocks]
    if found.family != architecture.family or [len(layer) for layer in found.scores] != heads:
        raise ConfigError(f"{path} is the profile of another model; {ADVICE}")
    return found.scores


def read_spread(path: str) -> list[float]:
    """How unevenly the tokens of each layer are attended to, 0 to 1. Raises ConfigError."""
    found = _read(path).spread
    if not found or not all(0 <= x <= 1 for x in found):
        raise ConfigError(f"{path} does not say how unevenly tokens are attended to; {ADVICE}")
    return found


def _read(path: str) -> _File:
    return artefact.read(path, _File, "profile of heads", ADVICE, most=MAX_BYTES)


def split_heads(
    architecture: Architecture, scores: list[list[float]], share: float, near: GroupSpec
) -> tuple[GroupSpec, ...]:
    """Groups for the heads that keep everything, for layers with windows of their own, and, like `near`, for the rest.

    share: of the kv heads of layers that see everything; those that score highest, lower layers and heads first.
    """
    far = [
        (layer, head)
        for layer, block in enumerate(architecture.blocks)
        if block.attention.window is None
        for head in range(block.attention.kv_heads)
    ]
    far.sort(key=lambda place: (-scores[place[0]][place[1]], place))
    chosen = set(far[: round(share * len(far))])
    parts: dict[GroupSpec, list[Member]] = {}
    for layer, block in enumerate(architecture.blocks):
        attention = block.attention
        for head in range(attention.kv_heads):
            everything = attention.window is not None or (layer, head) in chosen
            spec = replace(near, window=attention.window, sink=0, summary=None) if everything else near
            members = parts.setdefault(spec, [])
            if members and members[-1].layer == layer:
                members[-1] = replace(members[-1], kv_heads=(*members[-1].kv_heads, head))
            else:
                members.append(
                    Member(layer, (head,), attention.head_size, attention.heads // attention.kv_heads)
                )
    ordered = sorted(
        parts.items(), key=lambda item: (item[0].window is not None, item[0].window or 0, item[0].sink)
    )
    return tuple(replace(spec, name=_name(spec), members=tuple(members)) for spec, members in ordered)


def _name(spec: GroupSpec) -> str:
    sink = f"+{spec.sink}" if spec.sink else ""
    return "full" if spec.window is None else f"window{spec.window}{sink}{'+summary' if spec.summary else ''}"
