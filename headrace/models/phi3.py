"""Phi-3 and Phi-4: Llama's block, with query, key and value weights in one tensor, and gate and up in another.

Paper   https://arxiv.org/abs/2404.14219
Idea    Fused tensors are split by rows while they load.
Trades  Nothing: the maths is the checkpoint's own.
Differs LongRoPE and partly rotated heads (the 128k variants, Phi-4-mini) are refused: not implemented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, Context, Count, Eps, activation, architecture, attention
from headrace.weight.names import STANDARD, Names
from headrace.weight.rope import read_rope

_LAYER = "model.layers.{i}"


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    rms_norm_eps: Eps = 1e-5
    sliding_window: Count | None = None
    original_max_position_embeddings: Context = 4096
    """Read by LongRoPE alone."""
    attention_bias: Literal[False] = False


@dataclass(frozen=True, kw_only=True)
class Phi3:
    """model_type phi3."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2404.14219")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(
        modules=STANDARD,
        fused={
            f"{_LAYER}.self_attn.qkv_proj": tuple(f"blocks.{{i}}.attention.{part}" for part in "qkv"),
            f"{_LAYER}.mlp.gate_up_proj": ("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"),
        },
    )

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        if rope.name != "rope":
            raise ValueError(
                f"rope_scaling {rope.name!r} is not supported for phi3: use a variant without it"
            )
        block = Block(
            attention=attention(
                config,
                positions=POSITIONS.load(rope.name)(**rope.options),
                theta=rope.theta,
                window=config.sliding_window,
            ),
            mlp=Mlp(width=config.intermediate_size, activation=activation(config.hidden_act)),
        )
        return architecture(config, "phi3", (block,) * config.num_hidden_layers, rope.context)
