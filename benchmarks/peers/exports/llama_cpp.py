"""Hugging Face folder -> GGUF: the tensors as they are in F16, then llama.cpp's own quantiser for the other formats.

The vocabulary comes along, because llama.cpp's server does not start without one. Bfloat16 is read by hand, because
numpy has no such type and PyTorch is not needed here for anything else.

    python -m benchmarks.peers.exports.llama_cpp --source DIR --target DIR [--only Q4_0,Q8_0]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lib
import numpy

F16_FIRST = "F16"
FTYPES = {
    "Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "BF16": lib.LLAMA_FTYPE_MOSTLY_BF16,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Module of a Llama-like checkpoint -> GGUF's name."""


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor of the folder's safetensors as float32."""
    for file in sorted(folder.glob("*.safetensors")):
        size = int.from_bytes(file.open("rb").read(8), "little")
        header = json.loads(file.open("rb").read(8 + size)[8:])
        data = numpy.memmap(file, dtype=numpy.uint8, mode="r", offset=8 + size)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
            begin, end = entry["data_offsets"]
            halves = data[begin:end].view(numpy.uint16).astype(numpy.uint32) << 16
            yield name, halves.view(numpy.float32).reshape(entry["shape"])


def write_f16(source: Path, target: Path) -> None:
    """The model in F16; norms and biases in F32, as llama.cpp's own converter leaves them."""
    config = json.loads((source / "config.json").read_text())
    kind, heads = config["model_type"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(target, kind, use_temp_file=True)
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_vocabulary(writer, json.loads((source / "tokenizer.json").read_text()), config)
    writer.add_file_type(lib.LLAMA_FTYPE_MOSTLY_F16)
    groups = {"q_proj": heads, "k_proj": config["num_key_value_heads"]}
    for name, values in tensors(source):
        module, _, leaf = name.rpartition(".")
        part = module.rpartition(".")[2]
        if kind == "llama" and part in groups:
            values = _interleave(values, groups[part])
        kept = values if values.ndim == 1 else values.astype(numpy.float16)
        writer.add_tensor(f"{rename(module)}.{leaf}", kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """A byte-level BPE vocabulary, as tokenizer.json has it."""
    pieces = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if piece in special else gguf.TokenType.NORMAL for piece in pieces]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def rename(module: str) -> str:
    """model.layers.3.self_attn.q_proj -> blk.3.attn_q."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{match[1]}.{NAMES[match[2]]}" if match else NAMES[module]


def _interleave(values: Any, heads: int) -> Any:
    """Rows of a rotated projection in the order that GGUF's `llama` keeps: the two of a pair side by side."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def quantise(source: Path, target: Path, ftype: int) -> None:
    """llama.cpp's own quantiser, with its own choice of format for the head."""
    params = lib.llama_model_quantize_default_params()
    params.ftype = ftype
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code:
        raise SystemExit(f"llama_model_quantize returns {code} for {target.name}")


def write(source: Path, target: Path, kinds: list[str]) -> None:
    """The files that are not there yet. The others are made of F16, which goes again if nobody asked for it."""
    first = target / f"{F16_FIRST}.gguf"
    only_now = F16_FIRST not in kinds and not first.exists()
    absent = [kind for kind in kinds if not (target / f"{kind}.gguf").exists()]
    for kind in dict.fromkeys([F16_FIRST, *absent] if absent else []):
        path, partial = target / f"{kind}.gguf", target / f"{kind}.partial"
        if path.exists():
            continue
        if kind == F16_FIRST:
            write_f16(source, partial)
        else:
            quantise(first, partial, FTYPES[kind])
        partial.rename(path)
    if only_now:
        first.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--only", default=",".join((F16_FIRST, *FTYPES)), help="formats, separated by commas")
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    write(given.source, given.target, given.only.split(","))


if __name__ == "__main__":
    main()
