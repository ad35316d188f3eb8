"""Codebooks for keys and values: a few numbers in [-1, 1] per layer, not evenly spread, and the range of each channel.

A file of them is made once per model, from what its keys and values are on some text: keys as they are before their
rotation, where a channel keeps to its range, whatever the position. The numbers of a layer, each mapped from its range
to [-1, 1], are one sample; a codebook is its k-means in one dimension.

Paper   https://arxiv.org/abs/2401.18079 (KVQuant), whose samples are weighted by how much the loss feels them (Fisher
        information, from gradients); here all weigh the same
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from headrace import artefact
from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.kernels import attention
from headrace.layer.positions import LivePositions
from headrace.types import Batch

BITS = (2, 3, 4)
MAX_BYTES = 64 << 20
ROUNDS = 60
"""Of k-means; it has settled long before."""
DIGITS = 5
"""Of a number in a file."""
ADVICE = "make one: headrace profile --of codes --model DIR --out FILE"


class LayerCodes(msgspec.Struct, forbid_unknown_fields=True):
    """Of one layer."""

    low: list[list[float]]
    """Per kv head and channel: the least key, before rotation, but for the rarest."""
    high: list[list[float]]
    keys: dict[str, list[float]]
    """Bits -> codebook, ascending."""
    values: dict[str, list[float]]


class Codebooks(msgspec.Struct, forbid_unknown_fields=True):
    """A file's content."""

    family: str
    layers: list[LayerCodes]


class Samples:
    """Keys and values of texts, one in each batch (headrace.layer.attention.KeysValues), remembered."""

    def __init__(self, architecture: Architecture, rotaries: Mapping[int, LivePositions]) -> None:
        self._blocks, self._rotaries = architecture.blocks, rotaries
        self.found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in architecture.blocks]
        """Per layer, per text: keys before rotation and values, float32 [T, G, H]."""

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        """Attention of every row to all before it, within the layer's window."""
        spec, positions_T = self._blocks[layer].attention, batch.positions_T
        before_TGH = self._rotaries[layer].undo(k_TGH, positions_T)
        self.found[layer].append((before_TGH.float(), v_TGH.float().clone()))
        return attention.attend(q_TNH, k_TGH, v_TGH, positions_T, 0, spec.scale, spec.window).out_TNH


def learn(family: str, samples: Samples, rare: float) -> Codebooks:
    """Codebooks of every layer. rare: share of a channel's keys beyond either end of its range."""
    layers = []
    for texts in samples.found:
        k_TGH, v_TGH = (torch.cat([text[i] for text in texts]) for i in range(2))
        low_GH, high_GH = k_TGH.quantile(rare, 0), k_TGH.quantile(1 - rare, 0)
        keys = to_unit(k_TGH, low_GH, high_GH)
        values = to_unit(v_TGH, v_TGH.amin(-1, keepdim=True), v_TGH.amax(-1, keepdim=True))
        books = [{str(bits): _rounded(k_means(unit, 1 << bits)) for bits in BITS} for unit in (keys, values)]
        layers.append(LayerCodes([_rounded(x) for x in low_GH], [_rounded(x) for x in high_GH], *books))
    return Codebooks(family, layers)


def to_unit(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From [low, high] to [-1, 1], where what lies beyond is cut off; 0 where the range is empty."""
    width = high - low
    unit = torch.where(width > 0, (x - low) / width * 2 - 1, 0.0)
    return unit.clamp(-1, 1)


def from_unit(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The way back."""
    return low + (unit + 1) * ((high - low) / 2)


def k_means(x: Tensor, count: int) -> Tensor:
    """float64 [count], ascending: centres that the sample's numbers are closest to, from its quantiles on."""
    x = x.flatten().double().sort().values
    sums = torch.cat((x.new_zeros(1), x.cumsum(0)))
    centres = x[((torch.arange(count) + 0.5) / count * len(x)).long()].clone()
    for _ in range(ROUNDS):
        ends = torch.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat((ends.new_zeros(1), ends, ends.new_full((1,), len(x))))
        counts = ends.diff()
        centres = torch.where(counts > 0, sums[ends].diff() / counts.clamp_min(1), centres).sort().values
    return centres


def encode(unit: Tensor, book_C: Tensor) -> Tensor:
    """uint8: the number in the codebook of what is closest; between two, the lower one."""
    return torch.bucketize(unit, (book_C[1:] + book_C[:-1]) / 2).to(torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., H] -> [..., bits * ceil(H / 8)]: a plane of eights for each bit, the lowest first."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8)).unflatten(-1, (-1, 8)).int()
    places = torch.arange(8, dtype=torch.int32)
    planes = [((padded >> bit & 1) << places).sum(-1).to(torch.uint8) for bit in range(bits)]
    return torch.cat(planes, -1)


def unpack(packed: Tensor, bits: int, head_size: int) -> Tensor:
    """The way back, int64."""
    planes = packed.unflatten(-1, (bits, -1)).long()[..., None] >> torch.arange(8) & 1
    return (planes << torch.arange(bits)[:, None, None]).sum(-3).flatten(-2)[..., :head_size]


def read(path: str) -> Codebooks:
    """Raises ConfigError if the file is none of codebooks."""
    books = artefact.read(path, Codebooks, "codebooks", ADVICE, most=MAX_BYTES, verb="holds")
    for layer in books.layers:
        _check(path, layer)
    return books


def _check(path: str, layer: LayerCodes) -> None:
    for books in (layer.keys, layer.values):
        if any(len(books.get(str(bits), ())) != 1 << bits for bits in BITS):
            raise ConfigError(f"{path} lacks a codebook for {', '.join(map(str, BITS))} bits; {ADVICE}")
    numbers = [
        x
        for rows in (layer.low, layer.high, [*layer.keys.values(), *layer.values.values()])
        for r in rows
        for x in r
    ]
    if not all(map(math.isfinite, numbers)) or list(map(len, layer.low)) != list(map(len, layer.high)):
        raise ConfigError(f"{path} holds ranges that are none; {ADVICE}")
    if any(book != sorted(book) for books in (layer.keys, layer.values) for book in books.values()):
        raise ConfigError(f"{path} holds a codebook that does not ascend; {ADVICE}")


def _rounded(x: Tensor) -> list[float]:
    return [float(f"{number:.{DIGITS}g}") for number in x.tolist()]
