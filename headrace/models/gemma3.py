"""Gemma 3, text: five windowed layers to each full one, a rotary base for either kind, norms on both sides of a branch.

Paper   https://arxiv.org/abs/2503.19786
Idea    Windowed layers keep the cache small; full ones rotate with a base of a million and so reach far. Norms multiply
        by 1 + weight, and embeddings by the square root of the width.
Trades  Nothing: the maths is the checkpoint's own.
Differs Of the multimodal checkpoints (gemma3) the text part alone is loaded. Soft-capped logits and bidirectional
        attention, which no published Gemma 3 decoder uses, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from msgspec import Struct, structs

from headrace.architecture import Architecture, Attention, Block, Mlp
from headrace.layer.positions import SLOT as POSITIONS
from headrace.slots import Card
from headrace.weight.config import (
    Common,
    Context,
    Count,
    Layers,
    Token,
    Vocab,
    activation,
    architecture,
    attention,
    parse,
    windows,
)
from headrace.weight.names import HEAD_NORMS, STANDARD, Names
from headrace.weight.rope import Rope, make_rope

_LAYER = "model.layers.{i}"
_MODULES = {
    **STANDARD,
    **HEAD_NORMS,
    "blocks.{i}.attention_post_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{i}.mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
    "blocks.{i}.mlp_post_norm": f"{_LAYER}.post_feedforward_layernorm",
}


class Config(Common, kw_only=True, frozen=True):
    """config.json of a text model, or text_config of a multimodal one, where most keys are left to their defaults."""

    vocab_size: Vocab = 262208
    hidden_size: Count = 2304
    intermediate_size: Count = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Context = 131072
    tie_word_embeddings: bool = True
    bos_token_id: Token | None = 2
    eos_token_id: Token | list[Token] | None = 1
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: Count | None = 4096
    sliding_window_pattern: Count | None = None
    _sliding_window_pattern: Count | None = None
    layer_types: list[str] | None = None
    rope_local_base_freq: float | None = None
    attn_logit_softcapping: None = None
    final_logit_softcapping: None = None
    use_bidirectional_attention: Literal[False] | None = False


@dataclass(frozen=True, kw_only=True)
class Gemma3Text:
    """model_type gemma3_text."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2503.19786")
    schema: ClassVar[type[Config]] = Config
    names: ClassVar[Names] = Names(modules=_MODULES)

    def architecture(self, config: Config) -> Architecture:
        local, full = self._ropes(config)
        pattern = config.sliding_window_pattern or config._sliding_window_pattern or 6
        reach = windows(
            config.layer_types,
            config.num_hidden_layers,
            config.sliding_window,
            lambda layer: (layer + 1) % pattern != 0,
        )
        if config.sliding_window is None and config.layer_types is None:
            raise ValueError("sliding_window is missing")
        mlp = Mlp(width=config.intermediate_size, activation=activation(config.hidden_activation))
        blocks = tuple(
            Block(
                attention=self._attention(config, full if window is None else local, window),
                mlp=mlp,
                post_norms=True,
            )
            for window in reach
        )
        context = min(rope.context for rope in (local, full))
        scale = config.hidden_size**0.5
        return architecture(config, "gemma3_text", blocks, context, norm_offset=1.0, embedding_scale=scale)

    def _ropes(self, config: Config) -> tuple[Rope, Rope]:
        """Of windowed and of full layers."""
        both = config.rope_parameters or {}
        if not set(both) <= {"sliding_attention", "full_attention"}:
            raise ValueError(
                "rope_parameters must have one entry for sliding_attention and one for full_attention"
            )
        local, full = both.get("sliding_attention") or {}, both.get("full_attention") or {}
        context, partial = config.max_position_embeddings, config.partial_rotary_factor
        return (
            make_rope(local, config.rope_local_base_freq or 1e4, context, partial),
            make_rope({**full, **(config.rope_scaling or {})}, config.rope_theta or 1e6, context, partial),
        )

    def _attention(self, config: Config, rope: Rope, window: int | None) -> Attention:
        return attention(
            config,
            positions=POSITIONS.load(rope.name)(**rope.options),
            theta=rope.theta,
            window=window,
            scale=config.query_pre_attn_scalar**-0.5,
            qk_norm=True,
            qkv_bias=config.attention_bias,
            out_bias=config.attention_bias,
        )


class Composite(Struct, kw_only=True, frozen=True):
    """config.json of a multimodal model."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any] | None = None
    eos_token_id: Token | list[Token] | None = None
    bos_token_id: Token | None = None
    tie_word_embeddings: bool | None = None
    mm_tokens_per_image: int | None = None
    boi_token_index: int | None = None
    eoi_token_index: int | None = None
    image_token_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gemma3:
    """model_type gemma3: images and text; the text part runs."""

    card: ClassVar[Card] = Card(slot="model", exact="bits", paper="https://arxiv.org/abs/2503.19786")
    schema: ClassVar[type[Composite]] = Composite
    names: ClassVar[Names] = Names(
        modules=_MODULES,
        ignored=("*vision_tower.*", "*multi_modal_projector.*"),
        prefixes=(
            ("language_model.model.", "model."),
            ("model.language_model.", "model."),
            ("language_model.lm_head.", "lm_head."),
        ),
    )

    def architecture(self, config: Composite) -> Architecture:
        outer = {
            key: getattr(config, key)
            for key in ("eos_token_id", "bos_token_id", "tie_word_embeddings")
            if getattr(config, key) is not None
        }
        return Gemma3Text().architecture(structs.replace(parse(config.text_config, Config), **outer))
