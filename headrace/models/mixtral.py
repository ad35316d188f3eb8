"""Mixtral: Mistral's block with eight experts in place of the MLP, two of them active per token.

Paper   https://arxiv.org/abs/2401.04088
Idea    A router picks the experts of each token; their outputs are mixed by shares that sum to one.
Trades  Nothing: the maths is the checkpoint's own.
Differs No deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, Count, Eps, Experts, activation, architecture, attention
from headrace.weight.names import STANDARD, Names
from headrace.weight.rope import read_rope

_MOE = "model.layers.{i}.block_sparse_moe"


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    num_key_value_heads: Count | None = 8
    rms_norm_eps: Eps = 1e-5
    sliding_window: Count | None = None
    num_experts_per_tok: Experts = 2
    num_local_experts: Experts = 8


@dataclass(frozen=True, kw_only=True)
class Mixtral:
    """model_type mixtral."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2401.04088")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(
        modules={
            **STANDARD,
            "blocks.{i}.mlp.router": f"{_MOE}.gate",
            "blocks.{i}.mlp.experts.{e}.gate": f"{_MOE}.experts.{{e}}.w1",
            "blocks.{i}.mlp.experts.{e}.up": f"{_MOE}.experts.{{e}}.w3",
            "blocks.{i}.mlp.experts.{e}.down": f"{_MOE}.experts.{{e}}.w2",
        }
    )

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config, default_theta=1e6)
        if config.num_experts_per_tok > config.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok={config.num_experts_per_tok} of num_local_experts={config.num_local_experts}"
            )
        block = Block(
            attention=attention(
                config,
                positions=POSITIONS.load(rope.name)(**rope.options),
                theta=rope.theta,
                window=config.sliding_window,
            ),
            mlp=Mlp(
                width=config.intermediate_size,
                activation=activation(config.hidden_act),
                experts=config.num_local_experts,
                active=config.num_experts_per_tok,
            ),
        )
        return architecture(config, "mixtral", (block,) * config.num_hidden_layers, rope.context)
