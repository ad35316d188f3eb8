"""Changes of a block's weights that leave what the model computes as it is: scales and rotations between two products.

    scale     what makes an input is divided by s, what reads it is multiplied:   (W diag(s)) (x / s) = W x
              norm -> query, key, value;  value -> out;  norm -> gate, up, router;  up -> down
    rotation  what writes the residual stream is turned by Q, what reads it back: (W Q) (Q^T x) = W x, and an RMS norm
              whose weight has gone into its readers commutes with a rotation

Paper   https://arxiv.org/abs/2306.00978 (AWQ), https://arxiv.org/abs/2405.04532 (QoQ), https://arxiv.org/abs/2404.00456
        (QuaRot: where rotations can be folded)

Shape suffixes beside those of headrace/types.py: C channels of a source, I inputs of its readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.architecture import Block
from headrace.weight.piece import Moments, Piece, Seen, product_of

_LEAST = 1e-4
"""Scales are not smaller: a channel that is always 0 must not become infinite."""


@dataclass(frozen=True)
class Fold:
    """A place between two products where a scale per channel can be put."""

    source: str
    """The module whose outputs are divided."""
    readers: tuple[str, ...]
    """The modules whose inputs are multiplied; the first reads every row."""
    heads: tuple[int, int] | None = None
    """Query heads per kv head, and the head size, where each channel is read by several heads."""

    def spread(self, scale_C: Tensor) -> Tensor:
        """Per channel -> per input of a reader."""
        if self.heads is None:
            return scale_C
        each, size = self.heads
        return scale_C.view(-1, 1, size).expand(-1, each, size).flatten()

    def most(self, value_I: Tensor) -> Tensor:
        """Per input -> per channel: the largest of the heads that read it."""
        return value_I if self.heads is None else self._by_head(value_I).amax(1).flatten()

    def mean(self, value_I: Tensor) -> Tensor:
        """Per input -> per channel: the mean of the heads that read it."""
        return value_I if self.heads is None else self._by_head(value_I).mean(1).flatten()

    def moments(self, seen: Seen) -> Moments:
        """Of the rows that the source makes."""
        return seen.of(self.readers[0])

    def _by_head(self, value_I: Tensor) -> Tensor:
        assert self.heads is not None
        return value_I.view(-1, *self.heads)


def folds(block: Block) -> list[Fold]:
    """Every place of a block, in the order of the forward pass. All of them exist in every family."""
    spec, mlp = block.attention, block.mlp
    parts = [f"mlp.experts.{e}" for e in range(mlp.experts)] or ["mlp"]
    routers = ("mlp.router",) if mlp.experts else ()
    readers = tuple(f"{part}.{name}" for part in parts for name in ("gate", "up"))
    return [
        Fold("attention_norm", ("attention.q", "attention.k", "attention.v")),
        Fold("attention.v", ("attention.out",), (spec.heads // spec.kv_heads, spec.head_size)),
        Fold("mlp_norm", (*routers, *readers)),
        *(Fold(f"{part}.up", (f"{part}.down",)) for part in parts),
    ]


def apply_scale(piece: Piece, fold: Fold, scale_C: Tensor, seen: Seen | None = None) -> None:
    """Divides the source by `scale_C` and multiplies its readers; `seen` becomes what it would have been."""
    tensors = piece.tensors
    weight = tensors[f"{fold.source}.weight"]
    if weight.ndim == 1:
        offset = piece.architecture.norm_offset
        tensors[f"{fold.source}.weight"] = (weight + offset) / scale_C - offset
    else:
        tensors[f"{fold.source}.weight"] = weight / scale_C[:, None]
        if f"{fold.source}.bias" in tensors:
            tensors[f"{fold.source}.bias"] = tensors[f"{fold.source}.bias"] / scale_C
    scale_I = fold.spread(scale_C)
    for reader in fold.readers:
        tensors[f"{reader}.weight"] = tensors[f"{reader}.weight"] * scale_I
    if seen is not None:
        for product in dict.fromkeys(product_of(reader) for reader in fold.readers):
            if product in seen.inputs:
                seen.inputs[product].divide(scale_I)


def safe(scale_C: Tensor) -> Tensor:
    """The scale without what would lose numbers: not below 1e-4, and as much above 1 as below."""
    scale_C = scale_C.clamp(min=_LEAST)
    return scale_C / (scale_C.max() * scale_C.min()).sqrt()


def apply_key_scale(piece: Piece, scale_GH: Tensor) -> None:
    """Divides keys, as they are stored, by `scale_GH`, and multiplies queries: their scores stay.

    A rotation mixes the numbers i and i + H / 2 of a head, which must share a scale; where heads are normed after their
    projection, the norm's weights take the scale, and all kv heads share one.
    """
    spec, tensors = piece.block.attention, piece.tensors
    half = spec.head_size // 2
    assert torch.equal(scale_GH[:, :half], scale_GH[:, half:]), (
        "a pair of numbers that is rotated has two scales"
    )
    if spec.qk_norm:
        assert (scale_GH == scale_GH[0]).all(), "normed heads share their scale"
        offset = piece.architecture.norm_offset
        for name, factor_H in (("q", scale_GH[0]), ("k", 1 / scale_GH[0])):
            at = f"attention.{name}_norm.weight"
            tensors[at] = (tensors[at] + offset) * factor_H - offset
        return
    query = scale_GH.repeat_interleave(spec.heads // spec.kv_heads, 0).flatten()
    for name, factor in (("q", query), ("k", 1 / scale_GH.flatten())):
        tensors[f"attention.{name}.weight"] = tensors[f"attention.{name}.weight"] * factor[:, None]
        if f"attention.{name}.bias" in tensors:
            tensors[f"attention.{name}.bias"] = tensors[f"attention.{name}.bias"] * factor


def hadamard(size: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix that spreads one channel over many: float64 [size, size].

    Signs at random times a Hadamard matrix of the largest power of two in `size`, times (Kronecker) a random rotation
    of the odd rest. The same for the same seed.
    """
    power = size & -size
    generator = torch.Generator().manual_seed(seed)
    whole = torch.ones(1, 1, dtype=torch.float64)
    while len(whole) < power:
        whole = torch.cat((torch.cat((whole, whole), 1), torch.cat((whole, -whole), 1))) / 2**0.5
    if size > power:
        noise = torch.randn(size // power, size // power, generator=generator, dtype=torch.float64)
        whole = torch.kron(whole, torch.linalg.qr(noise).Q.contiguous())
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return whole * signs[:, None]


def rotate_residual(piece: Piece, turn_DD: Tensor) -> None:
    """Turns the residual stream, x -> x Q, in the tensors of one piece; every piece must be turned.

    Norms that read the stream give their weights to the products behind them. A tied head becomes one of its own, as
    it takes the final norm's weights. Blocks with norms on their branches cannot be turned: those weights stay.
    """
    tensors, offset = piece.tensors, piece.architecture.norm_offset
    if piece.layer is None:
        embed_VD = tensors["embed.weight"]
        head_VD = tensors.get("head.weight", embed_VD)
        tensors["head.weight"] = (head_VD * (tensors["norm.weight"] + offset)) @ turn_DD.to(head_VD.dtype)
        tensors["norm.weight"] = torch.ones_like(tensors["norm.weight"]) - offset
        tensors["embed.weight"] = embed_VD @ turn_DD.to(embed_VD.dtype)
        return
    assert not piece.block.post_norms, "a branch that is normed cannot be turned"
    for fold in folds(piece.block):
        norm = f"{fold.source}.weight"
        if tensors[norm].ndim == 1:
            for reader in fold.readers:
                weight = tensors[f"{reader}.weight"] * (tensors[norm] + offset)
                tensors[f"{reader}.weight"] = weight @ turn_DD.to(weight.dtype)
            tensors[norm] = torch.ones_like(tensors[norm]) - offset
        else:
            (writer,) = fold.readers
            turn = turn_DD.to(tensors[f"{writer}.weight"].dtype)
            tensors[f"{writer}.weight"] = turn.T @ tensors[f"{writer}.weight"]
            if f"{writer}.bias" in tensors:
                tensors[f"{writer}.bias"] = tensors[f"{writer}.bias"] @ turn


def rotate_values(piece: Piece, turn_HH: Tensor) -> None:
    """Turns every head's values, v -> v R, and what reads them back."""
    spec, tensors = piece.block.attention, piece.tensors
    turn_HH = turn_HH.to(tensors["attention.v.weight"].dtype)
    for leaf in ("weight", "bias"):
        if f"attention.v.{leaf}" in tensors:
            value = tensors[f"attention.v.{leaf}"]
            heads = value.reshape(spec.kv_heads, spec.head_size, -1)
            tensors[f"attention.v.{leaf}"] = (turn_HH.T @ heads).reshape(value.shape)
    out = tensors["attention.out.weight"]
    heads = out.reshape(len(out), spec.heads, spec.head_size)
    tensors["attention.out.weight"] = (heads @ turn_HH).flatten(1)
