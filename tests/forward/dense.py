"""The naive way: no cache, no pages, no batch. Every token recomputes everything before it."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.forward.decoder import Decoder
from tests.models.dense_kv import DenseKV, batch_of


@torch.inference_mode()
def logits(decoder: Decoder, tokens: list[int]) -> Tensor:
    """[T, V]: row i says what follows token i."""
    return decoder.logits(decoder.forward(batch_of(tokens), DenseKV(decoder.architecture)))


def decode(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(decoder, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def prompt_logprobs(decoder: Decoder, prompt: list[int]) -> list[float]:
    """Of the second token to the last."""
    law = torch.log_softmax(logits(decoder, prompt), -1)
    return [float(law[i, token]) for i, token in enumerate(prompt[1:])]
