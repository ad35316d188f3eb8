"""Shapes of published models, for measuring speed with random weights and without a download."""

from __future__ import annotations

from typing import Any

from headrace.architecture import Architecture
from headrace.errors import ConfigError, nearest

_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
"""name -> what its config.json says of sizes; the long-context scaling of Llama 3 does not change speed."""


def architecture(name: str) -> Architecture:
    """The model of that shape. Raises ConfigError, with the nearest name, for an unknown one."""
    if name not in SHAPES:
        raise ConfigError(f"no shape called {name!r}; {nearest(name, SHAPES)}")
    from headrace.models import SLOT
    from headrace.weight.config import parse

    config = SHAPES[name]
    family = SLOT.load(config["model_type"])()
    made: Architecture = family.architecture(parse(config, family.schema))
    return made
