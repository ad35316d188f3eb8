"""A small model of every family, in float64, and a format of codes that rounds nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headrace.architecture import Architecture
from headrace.forward.calibration import BlockPass
from headrace.forward.decoder import Decoder
from headrace.models import SLOT
from headrace.weight.assemble import Assembly, make
from headrace.weight.codes import Coded
from headrace.weight.config import parse
from headrace.weight.piece import Piece, Seen
from headrace.weight.recipes import Recipe
from headrace.weight.synthetic import random_tensors

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
PHI = {key: value for key, value in SMALL.items() if key != "head_dim"}
GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 9, "sliding_window_pattern": 2, "attention_bias": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "llama-tied-biases": (
        "llama",
        {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": ("mistral", {**SMALL, "sliding_window": 5}),
    "qwen2": ("qwen2", {**SMALL, "num_key_value_heads": 4}),
    "qwen3": ("qwen3", SMALL),
    "phi3": ("phi3", {**PHI, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**SMALL, **EXPERTS, "mlp_only_layers": [1]}),
    "gemma3_text": ("gemma3_text", {**SMALL, **GEMMA}),
    "gemma3": ("gemma3", {"text_config": {**SMALL, **GEMMA, "tie_word_embeddings": False}}),
}
"""Name -> model_type and config.json."""


def architecture(name: str) -> Architecture:
    kind, config = FAMILIES[name]
    family = SLOT.load(kind)()  # type: ignore[attr-defined]
    return family.architecture(parse(config, family.schema))


def tensors(model: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with a few channels that stand out, as trained models have them."""
    found = {name: t.clone() for name, t in random_tensors(model, seed, torch.float64)}
    for name, tensor in found.items():
        if name.endswith(("attention_norm.weight", "mlp_norm.weight")):
            tensor[3] *= 8
    return found


def decoder(model: Architecture, found: dict[str, Tensor]) -> Decoder:
    assembly = Assembly(model, make("plain"), torch.float64, "cpu")
    for name, tensor in found.items():
        assembly.put(name, 0, tensor)
    return Decoder(model, assembly.finish())


class Unrounded:
    """A format whose codes are the numbers themselves; with `pretend`, it says that they are whole eighths."""

    group = 8

    def __init__(self, pretend: bool = False) -> None:
        self.pretend = pretend

    def group_of(self, inputs: int) -> int:
        return min(self.group, inputs)

    def row_bytes(self, inputs: int) -> int:
        return 8 * inputs

    def grid(self, rows_OI: Tensor, importance_I: Tensor | None = None) -> UnroundedGrid:
        return UnroundedGrid(rows_OI, self.pretend)

    def values(self, stored_RB: Tensor, inputs: int) -> Tensor:
        return stored_RB.view(torch.float64)


class UnroundedGrid:
    def __init__(self, rows_OI: Tensor, pretend: bool) -> None:
        self.kept, self.pretend = torch.full(rows_OI.shape, torch.nan, dtype=rows_OI.dtype), pretend

    def fit(self, first: int, rows_OC: Tensor) -> None:
        pass

    def round(self, first: int, rows_OC: Tensor) -> Tensor:
        self.kept[:, first : first + rows_OC.shape[1]] = rows_OC
        return (rows_OC * 8).round() / 8 if self.pretend else rows_OC.clone()

    def stored(self) -> Tensor:
        return self.kept.view(torch.uint8)


def treat(
    recipe: Recipe, model: Architecture, found: dict[str, Tensor], ids: list[list[int]], form: Coded
) -> dict[str, Tensor]:
    """What a recipe makes of all tensors, as headrace/weight/calibrate.py goes about it, without a disk between."""
    made: dict[str, Tensor] = {}
    ends = {name: t for name, t in found.items() if not name.startswith("blocks.")}
    piece = Piece(model, None, ends)
    recipe.rewrite(piece)
    made |= piece.tensors
    hidden = [piece.tensors["embed.weight"][torch.tensor(row)] * model.embedding_scale for row in ids]
    for layer in range(len(model.blocks)):
        at = f"blocks.{layer}."
        piece = Piece(model, layer, {n.removeprefix(at): t for n, t in found.items() if n.startswith(at)})
        recipe.rewrite(piece)
        seen = Seen()
        for name in piece.matrices():
            seen.expect(name, piece.tensors[name])
        run = BlockPass(model, layer, piece.tensors)
        for x_TD in hidden:
            run(x_TD, seen.tell)
        stored = recipe.choose(piece, seen, form)
        assert set(stored) == set(piece.matrices())
        for name, rows in stored.items():
            inputs = found[at + name].shape[1]
            assert rows.dtype is torch.uint8 and rows.shape == (len(found[at + name]), form.row_bytes(inputs))
            piece.tensors[name] = form.values(rows, inputs).to(found[at + name].dtype)
        after = BlockPass(model, layer, piece.tensors)
        hidden = [after(x_TD) for x_TD in hidden]
        made |= {at + name: t for name, t in piece.tensors.items()}
    return made
