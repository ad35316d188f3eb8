"""Qwen3, mixture of experts: Qwen3's attention with many small experts, and dense MLPs in the layers config.json names.

Paper   https://arxiv.org/abs/2505.09388
Idea    128 narrow experts, 8 active per token; norm_topk_prob says whether their shares are scaled to sum to one.
Trades  Nothing: the maths is the checkpoint's own.
Differs With use_sliding_window every layer has the window, as in transformers 5; an old file that also limits it by
        max_window_layers is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.architecture import Architecture, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import Common, Count, Experts, activation, architecture, attention
from headrace.weight.names import HEAD_NORMS, STANDARD, Names
from headrace.weight.rope import read_rope

_EXPERT = "model.layers.{i}.mlp.experts.{e}"


class Config(Common, kw_only=True, frozen=True):
    """config.json."""

    num_key_value_heads: Count | None = 4
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: int | None = None
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None
    moe_intermediate_size: Count = 768
    num_experts_per_tok: Experts = 8
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    """Another spelling of num_experts."""
    norm_topk_prob: bool = False


@dataclass(frozen=True, kw_only=True)
class Qwen3Moe:
    """model_type qwen3_moe."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2505.09388")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(
        modules={
            **STANDARD,
            **HEAD_NORMS,
            "blocks.{i}.mlp.router": "model.layers.{i}.mlp.gate",
            "blocks.{i}.mlp.experts.{e}.gate": f"{_EXPERT}.gate_proj",
            "blocks.{i}.mlp.experts.{e}.up": f"{_EXPERT}.up_proj",
            "blocks.{i}.mlp.experts.{e}.down": f"{_EXPERT}.down_proj",
        }
    )

    def architecture(self, config: Config) -> Architecture:
        rope = read_rope(config)
        if config.use_sliding_window and config.max_window_layers:
            raise ValueError("max_window_layers with use_sliding_window is not supported for qwen3_moe")
        self_attention = attention(
            config,
            positions=POSITIONS.load(rope.name)(**rope.options),
            theta=rope.theta,
            window=config.sliding_window if config.use_sliding_window else None,
            qk_norm=True,
            qkv_bias=config.attention_bias,
            out_bias=config.attention_bias,
        )
        dense = Mlp(width=config.intermediate_size, activation=activation(config.hidden_act))
        sparse = self._sparse(config)
        alone, step = set(config.mlp_only_layers or ()), config.decoder_sparse_step
        blocks = tuple(
            Block(attention=self_attention, mlp=dense if layer in alone or (layer + 1) % step else sparse)
            for layer in range(config.num_hidden_layers)
        )
        return architecture(config, "qwen3_moe", blocks, rope.context)

    def _sparse(self, config: Config) -> Mlp:
        experts = config.num_experts or config.num_local_experts or 128
        if config.num_experts_per_tok > experts:
            raise ValueError(f"num_experts_per_tok={config.num_experts_per_tok} of num_experts={experts}")
        return Mlp(
            width=config.moe_intermediate_size,
            activation=activation(config.hidden_act),
            experts=experts,
            active=config.num_experts_per_tok,
            renormalise=config.norm_topk_prob,
        )
