"""lora: what low-rank adapters add to a product, each to its own rows.

    x_TI = before(x)                                       # a norm, a gate, or nothing: as in the product itself
    for each adapter, each of its rows t:
        hidden_r = scale_r * sum over i: down_ri * x_ti
        for each part (some outputs o, some ranks r):      # of a stacked product: query, key, value
            out_to += sum over r, in order: up_or * hidden_r

One of the two matrices may be a choice: ranks that are some of the inputs, or some of the outputs, of which only the
indices are kept. Then the other holds columns, or rows, of a change to the product's own weights.

A row has the same bits whatever rows are beside it, and the native levels agree bit for bit. Rows without an adapter
are not touched. Weights are float32 or bfloat16, and multiplied in float32 (float64 for float64 rows).

Shape suffixes beside those of headrace/types.py: O outputs, I inputs, R ranks, A rows of one adapter.

Paper   https://arxiv.org/abs/2106.09685 (LoRA); many at once: https://arxiv.org/abs/2310.18547 (Punica); choices:
        https://arxiv.org/abs/2412.06289 (S2FT)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.lora import reference


class Part(NamedTuple):
    """Some of the outputs, and the ranks that serve them."""

    ranks: int
    first: int
    outputs: int


class LoraWeight(NamedTuple):
    """One adapter's weights for one product."""

    down: Tensor
    """[R, I padded], float32 or bfloat16: the ranks of all parts. Or int64 [R], rising: the input that each is."""
    up: Tensor
    """Flat, part after part, of down's dtype. Or int64 [R], rising: the output that each is added to."""
    scale_R: Tensor
    """float32, or float64 beside float64 weights."""
    parts_P3: Tensor
    """int64"""
    width: int

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self[:4])

    def to(self, device: torch.device) -> LoraWeight:
        """The same on a device."""
        down, up, scale_R, parts_P3 = (tensor.to(device) for tensor in self[:4])
        return LoraWeight(down, up, scale_R, parts_P3, self.width)


class Group(NamedTuple):
    """An adapter, and its rows of a batch."""

    rows_A: Tensor
    """int64; none is in two groups."""
    weight: LoraWeight


def lora(out_TO: Tensor, x: Tensor, groups: Sequence[Group], before: Before = None) -> None:
    """Adds to rows of out_TO what their adapters make of the same rows of x, [T, I] (twice as wide before a gate).

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("lora") if x.is_cpu and x.dtype == torch.float32 else None
    if native is None:
        for rows_A, weight in groups:
            down, up, scale_R, parts_P3, _ = weight
            x_AI = apply(before, x[rows_A])
            parts = [tuple(part) for part in parts_P3.tolist()]
            out_TO[rows_A] = reference.add(out_TO[rows_A], x_AI, down, up, scale_R, parts)
        return
    tuples = [(rows_A, *weight[:4]) for rows_A, weight in groups]
    native(x, out_TO, groups[0].weight.width, tuples, *native_before(before))


def pack(parts: Sequence[tuple[Tensor, Tensor, float, int]]) -> LoraWeight:
    """Weights from (down [R, I], up [O, R], scale, first output) of each part; all of one dtype, all of one width."""
    downs = torch.cat([down_RI for down_RI, _, _, _ in parts])
    wide = torch.promote_types(downs.dtype, torch.float32)
    return LoraWeight(
        down=reference.pack_down(downs),
        up=torch.cat([reference.pack_up(up_OR) for _, up_OR, _, _ in parts]),
        scale_R=torch.cat([torch.full((len(down),), scale, dtype=wide) for down, _, scale, _ in parts]),
        parts_P3=torch.tensor([(len(down), first, len(up)) for down, up, _, first in parts]),
        width=downs.shape[1],
    )


def pack_inputs(inputs_R: Tensor, up_OR: Tensor, first: int, width: int) -> LoraWeight:
    """Weights that add up_OR x[inputs] to the outputs from `first` on. inputs_R: int64, rising."""
    return _chosen(inputs_R, reference.pack_up(up_OR), up_OR.dtype, (first, len(up_OR)), width)


def pack_outputs(outputs_R: Tensor, down_RI: Tensor) -> LoraWeight:
    """Weights that add down_RI x to these outputs. outputs_R: int64, rising."""
    return _chosen(
        reference.pack_down(down_RI), outputs_R, down_RI.dtype, (0, int(outputs_R[-1]) + 1), down_RI.shape[1]
    )


def _chosen(down: Tensor, up: Tensor, dtype: torch.dtype, outputs: tuple[int, int], width: int) -> LoraWeight:
    ranks = len(down)
    scale_R = torch.ones(ranks, dtype=torch.promote_types(dtype, torch.float32))
    return LoraWeight(down, up, scale_R, torch.tensor([(ranks, *outputs)]), width)


def num_bytes(width: int, parts: Sequence[tuple[int, int]], itemsize: int) -> int:
    """Memory of the two matrices of (ranks, outputs) parts, `itemsize` bytes per number. Where the width, or the
    outputs, are 0, there is no such matrix."""
    blocks = sum(-(-outputs // reference.BLOCK) * reference.BLOCK * ranks for ranks, outputs in parts)
    return itemsize * (reference.padded(width) * sum(ranks for ranks, _ in parts) + blocks)
