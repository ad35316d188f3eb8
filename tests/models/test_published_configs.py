"""config.json files as their authors published them: every key is understood, and the number of weights is theirs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headrace.architecture import Architecture
from headrace.models import SLOT
from headrace.weight.config import parse
from headrace.weight.names import shapes

BASE = {
    "transformers_version": "4.45.0",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "initializer_range": 0.02,
}
LLAMA_3_2_1B = {
    **BASE,
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
SMOLLM2_135M = {
    **BASE,
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
    "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "vocab_size": 49152,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
}  # fmt: skip
MISTRAL_7B = {
    **BASE,
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN2_5_0_5B = {
    **BASE,
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_0_6B = {
    **BASE,
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN3_30B_A3B = {
    **BASE,
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
PHI_3_MINI_4K = {
    **BASE,
    "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
    "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "sliding_window": 2047, "tie_word_embeddings": False, "attention_bias": False, "vocab_size": 32064,
}  # fmt: skip
MIXTRAL_8X7B = {
    **BASE,
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip
GEMMA_3_1B = {
    **BASE,
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
GEMMA_3_4B = {
    **BASE,
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model", "patch_size": 14},
}  # fmt: skip

COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "llama-3.2-1b": (LLAMA_3_2_1B, 1_235_814_400),
    "smollm2-135m": (SMOLLM2_135M, 134_515_008),
    "mistral-7b": (MISTRAL_7B, 7_241_732_096),
    "qwen2.5-0.5b": (QWEN2_5_0_5B, 494_032_768),
    "qwen3-0.6b": (QWEN3_0_6B, 596_049_920),
    "qwen3-30b-a3b": (QWEN3_30B_A3B, 30_532_122_624),
    "phi-3-mini-4k": (PHI_3_MINI_4K, 3_821_079_552),
    "mixtral-8x7b": (MIXTRAL_8X7B, 46_702_792_704),
    "gemma-3-1b": (GEMMA_3_1B, 999_885_952),
    "gemma-3-4b": (GEMMA_3_4B, 3_880_263_168),
}
"""name -> (config.json, weights of the decoder; a tied head counts once)."""


def read(config: dict[str, Any]) -> Architecture:
    family = SLOT.load(config["model_type"])()
    return family.architecture(parse(config, family.schema))


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_weights(name: str) -> None:
    config, count = COUNTS[name]
    assert sum(math.prod(shape) for shape in shapes(read(config)).values()) == count


@pytest.mark.parametrize("name", COUNTS)
def test_every_tensor_has_a_place_of_its_own_in_the_checkpoint(name: str) -> None:
    config, _ = COUNTS[name]
    architecture = read(config)
    plan = SLOT.load(config["model_type"]).names.plan(architecture)
    placed = [ours for parts in plan.values() for ours, _ in parts]
    assert sorted(placed) == sorted(shapes(architecture))


def test_facts() -> None:
    assert read(GEMMA_3_1B).facts() == {"model=gemma3_text", "sliding_window", "per_layer_positions"}
    assert read(QWEN3_30B_A3B).facts() == {"model=qwen3_moe", "moe"}
    assert read(QWEN2_5_0_5B).facts() == {"model=qwen2"}
    assert read(MISTRAL_7B).facts() == {"model=mistral", "sliding_window"}


def test_gemma_layers() -> None:
    architecture = read(GEMMA_3_4B)
    kinds = [
        (b.attention.window, b.attention.theta, type(b.attention.positions).__name__)
        for b in architecture.blocks
    ]
    assert kinds[:6] == [(1024, 1e4, "Rope")] * 5 + [(None, 1e6, "Linear")]
    assert kinds[6:12] == kinds[:6]
    assert architecture.embedding_scale == 2560**0.5 and architecture.norm_offset == 1.0
    assert architecture.eos == (1, 106) and architecture.tied_head
    assert architecture.blocks[0].attention.scale == 256**-0.5


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 32768),
        (
            {"type": "linear", "factor": 4.0},
            32768,
        ),  # whether the limit is meant before or after: take it at its word
        ({"type": "dynamic", "factor": 4.0}, 131072),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"type": "yarn", "original_max_position_embeddings": 8192}, 32768),
    ],
)
def test_context_follows_the_scaling(scaling: dict[str, Any] | None, context: int) -> None:
    assert read({**QWEN2_5_0_5B, "rope_scaling": scaling}).context == context


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (QWEN2_5_0_5B, {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 24"),
        (QWEN2_5_0_5B, {"layer_types": ["chunked_attention"] * 24}, "'chunked_attention' is not supported"),
        (QWEN2_5_0_5B, {"layer_types": ["sliding_attention"] * 24}, "no sliding_window is in use"),
        (QWEN2_5_0_5B, {"use_mrope": True}, "multimodal"),
        (QWEN3_30B_A3B, {"use_sliding_window": True, "sliding_window": 4096}, "max_window_layers"),
        (QWEN3_30B_A3B, {"num_experts_per_tok": 129}, "num_experts_per_tok=129"),
        (MIXTRAL_8X7B, {"num_experts_per_tok": 9}, "num_experts_per_tok=9"),
        (MISTRAL_7B, {"layer_types": ["full_attention"] * 32}, "unknown key 'layer_types'"),
        (PHI_3_MINI_4K, {"attention_bias": True}, "attention_bias"),
        (PHI_3_MINI_4K, {"rope_scaling": {"type": "longrope"}}, "'longrope'"),
        (PHI_3_MINI_4K, {"rope_scaling": {"type": "yarn", "factor": 2}}, "not supported for phi3"),
        (PHI_3_MINI_4K, {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        (GEMMA_3_1B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (GEMMA_3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_3_1B, {"rope_parameters": {"rope_theta": 1e6}}, "sliding_attention"),
        (GEMMA_3_1B, {"sliding_window": None}, "sliding_window"),
        (GEMMA_3_4B, {"text_config": {"hidden_sise": 1}}, "did you mean 'hidden_size'"),
        (GEMMA_3_4B, {"text_config": ...}, "text_config"),
    ],
)
def test_what_is_not_implemented_is_refused(
    config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    changed = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        read(changed)
