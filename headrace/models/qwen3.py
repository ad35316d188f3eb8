"""Qwen3, dense: a norm on every query and key head before rotation, in place of Qwen 2's biases.

Paper   https://arxiv.org/abs/2505.09388
Idea    Normed heads keep attention scores in range however large the weights grow.
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
from headrace.weight.names import HEAD_NORMS, STANDARD, Names
from headrace.weight.rope import read_rope


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    head_dim: Count | None = 128
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Qwen3:
    """model_type qwen3."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2505.09388")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(modules={**STANDARD, **HEAD_NORMS})

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        shared = {
            "positions": POSITIONS.load(rope.name)(**rope.options),
            "theta": rope.theta,
            "qk_norm": True,
            "qkv_bias": config.attention_bias,
            "out_bias": config.attention_bias,
        }
        mlp = Mlp(width=config.intermediate_size, activation=activation(config.hidden_act))
        window = config.sliding_window if config.use_sliding_window else None
        reach = windows(
            config.layer_types,
            config.num_hidden_layers,
            window,
            lambda layer: layer >= config.max_window_layers,
        )
        blocks = tuple(
            Block(attention=attention(config, window=window, **shared), mlp=mlp) for window in reach
        )
        return architecture(config, "qwen3", blocks, rope.context)
