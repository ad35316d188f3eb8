"""What a model is made of, as plain values: a list of blocks. Families (headrace/models/) produce it, layers run it.

Shape suffixes as in headrace/types.py: N query heads, G kv heads, H head size, D model width, F MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One layer's attention."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    """Multiplies q . k, usually head_size ** -0.5."""
    positions: Any
    """A technique of the slot layer/positions, equal (==) for layers that share rotation tables."""
    theta: float
    """Base of the rotary frequencies."""
    window: int | None = None
    """A query at p sees keys at (p - window, p]; None sees all."""
    qk_norm: bool = False
    """RMS norm over H of every query and key head, before rotation (Qwen3, Gemma 3)."""
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Gated MLP: down(act(gate(x)) * up(x)). With experts > 0, that many of them, `active` per token."""

    width: int
    activation: Activation = "silu"
    bias: bool = False
    experts: int = 0
    active: int = 0
    renormalise: bool = True
    """Active experts' weights are scaled to sum to one."""
    threshold: float | None = None
    """Neurons whose |act(gate)| is below it leave, and lie apart in memory so that they need not be read; None: all
    stay."""


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """How many tokens of a prompt run in a layer, and those above it."""

    share: float
    """Of the prompt's tokens; no more than of the layers below."""
    returns: int
    """Most tokens that come back for each token after the prompt."""
    shortest: int
    """Prompts with fewer tokens stay whole."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer: x += attention(norm(x)); x += mlp(norm(x)); with `post_norms` each branch is normed again."""

    attention: Attention
    mlp: Mlp
    post_norms: bool = False
    reach: int | None = None
    """How far beyond its prompt's last token a token may be to run in this layer; None: any does. A layer that a token
    leaves out adds nothing to it, and stores nothing of it."""
    thinning: Thinning | None = None
    """Tokens of the prompt that leave before this layer; None: none do."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A whole decoder-only model."""

    family: str
    vocab: int
    width: int
    context: int
    """Most positions: the longest prompt plus output."""
    blocks: tuple[Block, ...]
    norm_eps: float
    norm_offset: float = 0.0
    """RMS norms multiply by (offset + weight): 1 for Gemma."""
    embedding_scale: float = 1.0
    tied_head: bool = False
    eos: tuple[int, ...] = ()
    """End tokens named by config.json and generation_config.json."""
    bos: int | None = None

    @property
    def partly(self) -> bool:
        """Whether some tokens leave layers out."""
        return any(block.reach is not None for block in self.blocks)

    @property
    def thinnings(self) -> tuple[Thinning, ...]:
        """Those of its blocks, from the bottom up."""
        return tuple(block.thinning for block in self.blocks if block.thinning is not None)

    def facts(self) -> frozenset[str]:
        """What cards may need or break: see slots.Card."""
        facts = {f"model={self.family}"}
        attentions = [block.attention for block in self.blocks]
        if any(a.window for a in attentions):
            facts.add("sliding_window")
        if len({(a.positions, a.theta) for a in attentions}) > 1:
            facts.add("per_layer_positions")
        if any(block.mlp.experts for block in self.blocks):
            facts.add("moe")
        if any(block.mlp.bias for block in self.blocks):
            facts.add("mlp_bias")
        return frozenset(facts)
