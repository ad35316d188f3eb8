"""A small batched sampler with a KV cache, for the gates: many continuations of one prompt, float32.

Shape suffixes as in `model`; S is the cache's capacity in tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import Llama


class Cache:
    """Keys and values of every layer, [layers, B, G, S, H], filled up to `length`."""

    def __init__(self, model: Llama, rows: int, capacity: int) -> None:
        s = model.shape
        self.keys = torch.zeros(s.layers, rows, s.kv_heads, capacity, s.head)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def repeat(self, times: int) -> None:
        """From one row to `times` equal rows."""
        self.keys = self.keys.repeat_interleave(times, dim=1)
        self.values = self.values.repeat_interleave(times, dim=1)


def forward(model: Llama, ids_BT: Tensor, cache: Cache) -> Tensor:
    """Logits of the last token, [B, V]; the cache grows by T."""
    start, T = cache.length, ids_BT.shape[1]
    stop = start + T
    cos_TH, sin_TH = model.cos_TH[start:stop], model.sin_TH[start:stop]
    past = torch.ones(T, stop, dtype=torch.bool).tril(start)
    x_BTD = model.model.embed_tokens(ids_BT)
    for index, layer in enumerate(model.model.layers):
        q, k, v = layer.self_attn.project(layer.input_layernorm(x_BTD), cos_TH, sin_TH)
        cache.keys[index, :, :, start:stop], cache.values[index, :, :, start:stop] = k, v
        keys, values = cache.keys[index, :, :, :stop], cache.values[index, :, :, :stop]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=past, enable_gqa=True)
        x_BTD = x_BTD + layer.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        x_BTD = x_BTD + layer.mlp(layer.post_attention_layernorm(x_BTD))
    cache.length = stop
    return F.linear(model.model.norm(x_BTD[:, -1]), model.model.embed_tokens.weight)


@torch.no_grad()
def sample(
    model: Llama,
    prompt: list[int],
    limit: int,
    rows: int,
    temperature: float,
    seed: int,
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:
    """`rows` continuations of one prompt, each until `ended(its tokens)` or `limit`; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    cache = Cache(model, 1, len(prompt) + limit)
    logits_BV = forward(model, torch.tensor([prompt]), cache).repeat(rows, 1)
    cache.repeat(rows)
    made: list[list[int]] = [[] for _ in range(rows)]
    live = [True] * rows
    for position in range(limit):
        if temperature > 0:
            chosen_B = torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen_B = logits_BV.argmax(-1)
        for row, token in enumerate(chosen_B.tolist()):
            if live[row]:
                made[row].append(token)
                live[row] = not ended(made[row])
        if not any(live) or position == limit - 1:
            break
        logits_BV = forward(model, chosen_B[:, None], cache)
    return made
