"""Writes a trained model in the Hugging Face layout, in bfloat16, with its tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.model import Llama, Shape
from training.tokens import END, END_OF_TEXT, SPECIALS

SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
}  # a small model wanders off, or repeats itself
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_eps,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TEXT, END],
        "pad_token_id": END_OF_TEXT,
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    added = {
        str(i): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, text in enumerate(SPECIALS)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": SPECIALS[END_OF_TEXT],
        "eos_token": SPECIALS[END_OF_TEXT],
        "pad_token": SPECIALS[END_OF_TEXT],
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }


def write(model: Llama, tokenizer: Path, folder: Path) -> None:
    """All files that a loader expects; the head is tied, so there is no lm_head.weight."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    generation = {
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TEXT, END],
        "pad_token_id": END_OF_TEXT,
        "do_sample": True,
        **SAMPLING,
    }
    for name, value in (
        ("config", config(model.shape)),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer_config(model.shape)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    shutil.copy(tokenizer, folder / "tokenizer.json")
