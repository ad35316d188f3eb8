"""Mistral 7B and what followed in its shape: Llama with a sliding window in every layer, if config.json gives one.

Paper   https://arxiv.org/abs/2310.06825
Idea    A query sees the last `sliding_window` positions; farther ones reach it through the layers below.
Trades  Nothing: the maths is the checkpoint's own.
Differs No deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, Count, activation, architecture, attention
from headrace.weight.names import STANDARD, Names
from headrace.weight.rope import read_rope


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    num_key_value_heads: Count | None = 8
    sliding_window: Count | None = 4096


@dataclass(frozen=True, kw_only=True)
class Mistral:
    """model_type mistral."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2310.06825")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(modules=STANDARD)

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        block = Block(
            attention=attention(
                config,
                positions=POSITIONS.load(rope.name)(**rope.options),
                theta=rope.theta,
                window=config.sliding_window,
            ),
            mlp=Mlp(width=config.intermediate_size, activation=activation(config.hidden_act)),
        )
        return architecture(config, "mistral", (block,) * config.num_hidden_layers, rope.context)
