"""Keys of config.json that do not change what the model computes. Every other unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABOUT_THE_FILE = """
    _name_or_path _commit_hash architectures model_type auto_map transformers_version torch_dtype dtype
    _attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
    unsloth_version unsloth_fixed transformers.js_config is_llama_config _from_model_config
"""
_TRAINING = """
    initializer_range attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob
    resid_pdrop embd_pdrop classifier_dropout pretraining_tp output_router_logits router_aux_loss_coef
    router_jitter_noise gradient_checkpointing
"""
_OTHER_HEADS = """
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    pad_token_id sep_token_id decoder_start_token_id tf_legacy_loss tie_encoder_decoder is_decoder
    cross_attention_hidden_size chunk_size_feed_forward
"""
_RUNNING = """
    use_cache cache_implementation return_dict output_attentions output_hidden_states torchscript use_bfloat16
"""
_GENERATING = """
    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""

IGNORED: frozenset[str] = frozenset(
    " ".join((_ABOUT_THE_FILE, _TRAINING, _OTHER_HEADS, _RUNNING, _GENERATING)).split()
)
"""Never looked at. Sampling defaults are taken from generation_config.json alone."""

ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "add_cross_attention": ((False, None), "only decoders without cross-attention run here"),
    "is_encoder_decoder": ((False, None), "only decoders run here"),
    "pruned_heads": (({}, None), "save the model without pruned heads"),
    "quantization_config": ((None,), "this checkpoint is quantised; load the one it was made from"),
    "rope_interleaved": ((False, None), "convert the checkpoint to the half-split rotary layout"),
    "use_mrope": ((False, None), "multimodal positions are not supported"),
}
"""Key -> the values with which it is harmless, and what to say of any other."""
