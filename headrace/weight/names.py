"""Our names of a decoder's tensors, their shapes, and where a checkpoint keeps them.

embed.weight  norm.weight  head.weight
blocks.0.attention_norm.weight  blocks.0.attention.{q,k,v,out}.{weight,bias}  blocks.0.attention.{q,k}_norm.weight
blocks.0.mlp_norm.weight        blocks.0.mlp.{gate,up,down}.{weight,bias}
blocks.0.{attention,mlp}_post_norm.weight                          with post_norms
blocks.0.mlp.router.weight  blocks.0.mlp.experts.0.{gate,up,down}.weight      with experts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from headrace.architecture import Architecture, Attention, Block, Mlp

Shape = tuple[int, ...]

_LAYER = "model.layers.{i}"
STANDARD: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.{i}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{i}.attention.q": f"{_LAYER}.self_attn.q_proj",
    "blocks.{i}.attention.k": f"{_LAYER}.self_attn.k_proj",
    "blocks.{i}.attention.v": f"{_LAYER}.self_attn.v_proj",
    "blocks.{i}.attention.out": f"{_LAYER}.self_attn.o_proj",
    "blocks.{i}.mlp_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{i}.mlp.gate": f"{_LAYER}.mlp.gate_proj",
    "blocks.{i}.mlp.up": f"{_LAYER}.mlp.up_proj",
    "blocks.{i}.mlp.down": f"{_LAYER}.mlp.down_proj",
}
"""Module -> where a Llama-like checkpoint keeps it. {i} is the layer, {e} the expert."""
HEAD_NORMS: Mapping[str, str] = {
    "blocks.{i}.attention.q_norm": f"{_LAYER}.self_attn.q_norm",
    "blocks.{i}.attention.k_norm": f"{_LAYER}.self_attn.k_norm",
}
"""The same, of models that norm query and key heads."""
HARMLESS = ("*.rotary_emb.inv_freq", "rotary_emb.inv_freq")
"""Tensors that old checkpoints carry and nobody needs: the rotary tables are computed."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Where one family's checkpoints keep each tensor."""

    modules: Mapping[str, str]
    """Our module -> theirs."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Theirs -> ours, where one of theirs holds the rows of several of ours: first rows first. Wins over `modules`."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that belong to parts we do not run (vision towers)."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """(old, new) beginnings: a checkpoint's name that starts with `old` is read as if it started with `new`."""

    def standard(self, name: str) -> str:
        """A checkpoint's own name, prefixes replaced."""
        for old, new in self.prefixes:
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    def is_harmless(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in (*HARMLESS, *self.ignored))

    def plan(self, architecture: Architecture) -> dict[str, list[tuple[str, Shape]]]:
        """Checkpoint tensor -> our tensors that are its rows, first rows first."""
        places = {module: (theirs, 0) for module, theirs in self.modules.items()}
        for theirs, ours in self.fused.items():
            places |= {module: (theirs, rank) for rank, module in enumerate(ours)}
        ranked: dict[str, list[tuple[int, str, Shape]]] = {}
        for name, shape in shapes(architecture).items():
            template, indices, leaf = _split(name)
            theirs, rank = places[template]
            ranked.setdefault(f"{theirs.format(**indices)}.{leaf}", []).append((rank, name, shape))
        return {
            source: [(name, shape) for _, name, shape in sorted(parts)] for source, parts in ranked.items()
        }


def _split(name: str) -> tuple[str, dict[str, str], str]:
    """blocks.3.mlp.experts.7.up.weight -> (blocks.{i}.mlp.experts.{e}.up, {i: 3, e: 7}, weight)."""
    *parts, leaf = name.split(".")
    indices = {}
    for place, part in enumerate(parts):
        if part.isdigit():
            key = "i" if parts[place - 1] == "blocks" else "e"
            indices[key] = part
            parts[place] = f"{{{key}}}"
    return ".".join(parts), indices, leaf


def shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor of a decoder and its shape, in the order in which the decoder uses them."""
    found: dict[str, Shape] = {"embed.weight": (architecture.vocab, architecture.width)}
    for i, block in enumerate(architecture.blocks):
        found.update((f"blocks.{i}.{name}", shape) for name, shape in _block(block, architecture.width))
    found["norm.weight"] = (architecture.width,)
    if not architecture.tied_head:
        found["head.weight"] = (architecture.vocab, architecture.width)
    return found


def _block(block: Block, width: int) -> Iterator[tuple[str, Shape]]:
    yield "attention_norm.weight", (width,)
    yield from _attention(block.attention, width)
    if block.post_norms:
        yield "attention_post_norm.weight", (width,)
    yield "mlp_norm.weight", (width,)
    yield from _mlp(block.mlp, width)
    if block.post_norms:
        yield "mlp_post_norm.weight", (width,)


def _attention(attention: Attention, width: int) -> Iterator[tuple[str, Shape]]:
    q_rows, kv_rows = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
    yield from _linear("attention.q", q_rows, width, attention.qkv_bias)
    yield from _linear("attention.k", kv_rows, width, attention.qkv_bias)
    yield from _linear("attention.v", kv_rows, width, attention.qkv_bias)
    if attention.qk_norm:
        yield "attention.q_norm.weight", (attention.head_size,)
        yield "attention.k_norm.weight", (attention.head_size,)
    yield from _linear("attention.out", width, q_rows, attention.out_bias)


def _mlp(mlp: Mlp, width: int) -> Iterator[tuple[str, Shape]]:
    if mlp.experts:
        yield "mlp.router.weight", (mlp.experts, width)
    parts = [f"mlp.experts.{e}" for e in range(mlp.experts)] if mlp.experts else ["mlp"]
    for part in parts:
        yield from _linear(f"{part}.gate", mlp.width, width, mlp.bias)
        yield from _linear(f"{part}.up", mlp.width, width, mlp.bias)
        yield from _linear(f"{part}.down", width, mlp.width, mlp.bias)


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)
