"""Model folders made on the spot: byte-level (as Llama 3) and SentencePiece-style (as Llama 2) vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core

CORPUS = [
    "def add(left, right):\n    return left + right\n",
    "The quick brown fox jumps over the lazy dog. Stop here, or stop there; 0123456789.",
    "Grüße aus Zürich, naïve café, 東京へようこそ, Ελλάδα, Привет 👋🏽 🎉",
] * 4
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def save(core: Core, folder: Path, config: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(folder: Path) -> Path:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_tokens([AddedToken("<think>", special=False)])
    core.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", core.token_to_id("<|begin|>"))]
    )
    return save(
        core,
        folder,
        {
            "bos_token": "<|begin|>",
            "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
            "chat_template": TEMPLATE,
        },
    )


def sentencepiece(folder: Path) -> Path:
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    core = Core(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        show_progress=False,
        limit_alphabet=60,
    )
    core.train_from_iterator(CORPUS, trainer)
    state = json.loads(core.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    core = Core.from_str(json.dumps(state))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return save(core, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def random_model(folder: Path, *, context: int = 256, eos: bool = True, seed: int = 0) -> Path:
    """A whole model folder: byte_level's vocabulary, two Llama layers with random weights, a chat template."""
    import torch
    from safetensors.torch import save_file

    byte_level(folder)
    vocab, width, mlp, head, heads, kv_heads = 401, 32, 48, 8, 4, 2
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1 if eos else None,
    }
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (heads * head, width),
            f"{layer}.self_attn.k_proj.weight": (kv_heads * head, width),
            f"{layer}.self_attn.v_proj.weight": (kv_heads * head, width),
            f"{layer}.self_attn.o_proj.weight": (width, heads * head),
            f"{layer}.mlp.gate_proj.weight": (mlp, width),
            f"{layer}.mlp.up_proj.weight": (mlp, width),
            f"{layer}.mlp.down_proj.weight": (width, mlp),
        }
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
