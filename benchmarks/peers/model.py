"""A Hugging Face folder with random weights of a shape, and a made-up vocabulary: what the peers are given.

python -m benchmarks.peers.model --shape llama-3.2-1b --target DIR
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.commands import shapes
from headrace.models import SLOT

SEED, DEVIATION = 0, 0.02
BEGIN, END, MERGE = "<|begin|>", "<|end|>", ("Ġ", "t")
_SHARD = 2 << 30  # bytes: what is drawn is written before the next is drawn
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def write(shape: str, target: Path) -> None:
    """Makes the folder; it appears under its name only when it is whole. Raises ConfigError for an unknown shape."""
    if target.exists():
        return
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    _write_weights(shape, partial)
    config = {
        **shapes.SHAPES[shape],
        "architectures": [_CLASSES[shapes.SHAPES[shape]["model_type"]]],
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(partial, config["vocab_size"])
    partial.rename(target)


def tensors(shape: str) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes as the checkpoints of this family have them; norms are one, the rest is normal."""
    architecture = shapes.architecture(shape)
    names = SLOT.load(shapes.SHAPES[shape]["model_type"])().names
    generator = torch.Generator().manual_seed(SEED)
    for name, parts in names.plan(architecture).items():
        size = (sum(part[0] for _, part in parts), *parts[0][1][1:])
        if name.endswith("norm.weight"):
            yield name, torch.ones(size, dtype=torch.bfloat16)
        else:
            yield name, (torch.randn(size, generator=generator) * DEVIATION).to(torch.bfloat16)


def _write_weights(shape: str, folder: Path) -> None:
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}

    def flush() -> None:
        file = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, tensor in tensors(shape):
        if shard and tensor.nbytes + sum(kept.nbytes for kept in shard.values()) > _SHARD:
            flush()
        shard[name] = tensor
    flush()
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def vocabulary(size: int) -> list[str]:
    """Byte-level pieces: the bytes, begin and end, one merge (a file without any is refused), then made-up words."""
    from tokenizers import pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("Ġ" + "".join(word) for word in itertools.product(letters, repeat=4))
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), BEGIN, END, "".join(MERGE)]
    return [*pieces, *itertools.islice(words, size - len(pieces))]


def _write_tokenizer(folder: Path, size: int) -> None:
    """Every token that a model can answer has a text: servers refuse to start without any, or send none."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    places = {piece: place for place, piece in enumerate(vocabulary(size))}
    core = Tokenizer(models.BPE(places, [MERGE]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", required=True)
    parser.add_argument("--target", type=Path, required=True)
    given = parser.parse_args()
    write(given.shape, given.target)


if __name__ == "__main__":
    main()
