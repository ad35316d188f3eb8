"""Qwen 1.5, 2 and 2.5: biases on queries, keys and values; a sliding window in the upper layers, if switched on.

Paper   https://arxiv.org/abs/2412.15115
Idea    Llama's block with biased projections into attention. With use_sliding_window, layers from max_window_layers on
        see a window and those below see everything.
Trades  Nothing: the maths is the checkpoint's own.
Differs No deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, Count, activation, architecture, attention, windows
from headrace.weight.names import STANDARD, Names
from headrace.weight.rope import read_rope


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Qwen2:
    """model_type qwen2."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2412.15115")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(modules=STANDARD)

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        positions = POSITIONS.load(rope.name)(**rope.options)
        mlp = Mlp(width=config.intermediate_size, activation=activation(config.hidden_act))
        window = config.sliding_window if config.use_sliding_window else None
        reach = windows(
            config.layer_types,
            config.num_hidden_layers,
            window,
            lambda layer: layer >= config.max_window_layers,
        )
        blocks = tuple(
            Block(
                attention=attention(
                    config, positions=positions, theta=rope.theta, window=window, qkv_bias=True
                ),
                mlp=mlp,
            )
            for window in reach
        )
        return architecture(config, "qwen2", blocks, rope.context)
