"""Tiny models of every family, made by transformers with weights that hide nothing, and what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
RAMP = {"head_dim": 16, "rope_theta": 100.0}
"""Frequencies so close that some lie on the ramps of yarn and llama3."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}


def _scaled(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **options}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 500.0}),
    "llama-tied-mha": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-linear": ("Llama", _scaled("linear", factor=4.0)),
    "llama-dynamic": ("Llama", {**_scaled("dynamic", factor=8.0), "max_position_embeddings": 16}),
    "llama-llama3": ("Llama", {**RAMP, **_scaled("llama3", **LLAMA3)}),
    "llama-yarn": ("Llama", {**RAMP, **_scaled("yarn", **YARN)}),
    "llama-yarn-temper": ("Llama", {**RAMP, **_scaled("yarn", **YARN, mscale=1.0, mscale_all_dim=0.5)}),
    "llama-yarn-betas": ("Llama", {**RAMP, **_scaled("yarn", **YARN, beta_fast=2.0, beta_slow=0.5)}),
    "llama-yarn-whole": ("Llama", {**RAMP, **_scaled("yarn", **YARN, truncate=False, attention_factor=1.3)}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "mistral-full": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2-yarn": ("Qwen2", _scaled("yarn", **YARN)),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-window": (
        "Qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
            "attention_bias": True,
        },
    ),
    "phi3": ("Phi3", {}),
    "phi3-window": ("Phi3", {"sliding_window": 8, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 8}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe-mixed": (
        "Qwen3Moe",
        {**EXPERTS, "norm_topk_prob": False, "mlp_only_layers": [1], "num_experts_per_tok": 3},
    ),
    "qwen3_moe-sparse": (
        "Qwen3Moe",
        {**EXPERTS, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 8},
    ),
    "gemma3_text": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "num_hidden_layers": 7},
    ),
    "gemma3_text-types": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
            **_scaled("linear", factor=8.0),
        },
    ),
}
"""name -> (transformers' name of the family, what differs from SMALL)."""


def make(name: str) -> Any:
    """A transformers model of the case `name`, with weights drawn anew: norms and biases far from 1 and 0."""
    family, options = CASES[name]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    redraw(model, sum(map(ord, name)))
    model.generation_config.eos_token_id = None
    return model


def redraw(model: Any, seed: int) -> None:
    """Replaces every parameter: matrices keep activations near 1, vectors move by 0.3 from what they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * noise)


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    """[T, V] of a whole prompt."""
    found: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


@torch.no_grad()
def logits_step_by_step(model: Any, ids: list[int]) -> Tensor:
    """[T, V], one token at a time with a cache."""
    cache, rows = None, []
    for token in ids:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


@torch.no_grad()
def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens
