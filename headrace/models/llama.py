"""Llama 1 to 3, and everything published in its shape (SmolLM2, TinyLlama, Yi, DeepSeek LLM).

Paper   https://arxiv.org/abs/2407.21783
Idea    Pre-norm blocks, rotary positions, grouped-query attention, gated SiLU MLP; biases only where config.json says.
Trades  Nothing: the maths is the checkpoint's own.
Differs No deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, activation, architecture, attention
from headrace.weight.names import STANDARD, Names
from headrace.weight.rope import read_rope


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Llama:
    """model_type llama."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2407.21783")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(modules=STANDARD)

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        block = Block(
            attention=attention(
                config,
                positions=POSITIONS.load(rope.name)(**rope.options),
                theta=rope.theta,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
            ),
            mlp=Mlp(
                width=config.intermediate_size, activation=activation(config.hidden_act), bias=config.mlp_bias
            ),
        )
        return architecture(config, "llama", (block,) * config.num_hidden_layers, rope.context)
