"""Quick looks at a model in training, without generating: everything is read off one teacher-forced pass.

A greedy answer is right exactly when every answer token is the argmax given the ones before it. The chance that a
sample takes the one right path through a chain is the product of its tokens' probabilities. Passes run in float32:
their shapes vary, and bf16 kernels would be generated anew for each.
"""

from __future__ import annotations

import math
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from headrace.box.tasks import TASKS, Example
from training.model import Llama

LOOKS = {
    "passkey": (120, 800),
    "key_value": (15, 40),
    "edit_copy": (20, 45),
    "json": (3,),
    "add": (3,),
    "multiply": (2,),
    "sort": (6,),
    "countdown": (3,),
}
CHAIN_STEPS = (4, 8, 16)


@torch.no_grad()
def answer_scores(model: Llama, tokenizer: Tokenizer, example: Example) -> tuple[bool, float]:
    """(greedy decoding writes exactly answer + stop, log-probability of that text in nats)."""
    asked = tokenizer.encode(example.prompt).ids
    given = tokenizer.encode(example.answer + example.stop, add_special_tokens=False).ids
    ids_BT = torch.tensor([asked + given])
    hidden_TD = model.hidden(ids_BT)[0, len(asked) - 1 : -1]
    logits_TV = F.linear(hidden_TD, model.model.embed_tokens.weight)
    target_T = ids_BT[0, len(asked) :]
    exact = bool((logits_TV.argmax(-1) == target_T).all())
    return exact, float(logits_TV.log_softmax(-1).gather(1, target_T[:, None]).sum())


@torch.no_grad()
def window_bits(model: Llama, ids_T: Tensor, window: int) -> float:
    """Bits to code the tokens in windows of `window`, each after <|endoftext|> and nothing else."""
    total = 0.0
    for start in range(0, len(ids_T), window):
        piece_T = ids_T[start : start + window]
        logits_TV = model(torch.cat([piece_T.new_zeros(1), piece_T[:-1]])[None])[0]
        total += float(F.cross_entropy(logits_TV, piece_T, reduction="sum")) / math.log(2)
    return total


def make_probe(held_out: str, count: int = 12, seed: int = 99):
    """A function (model, tokenizer) -> one line: bits per byte of a part of the held-out text, and task accuracies."""
    part = held_out[20_000:44_000]

    def probe(model: Llama, tokenizer: Tokenizer) -> str:
        ids_T = torch.tensor(tokenizer.encode(part, add_special_tokens=False).ids)
        words = [f"PROBE bits/byte {window_bits(model, ids_T, 512) / len(part.encode()):.3f}"]
        for name, sizes in LOOKS.items():
            for size in sizes:
                rng = Random(f"{seed}/{name}/{size}")
                hits = sum(
                    answer_scores(model, tokenizer, TASKS[name].make(rng, size))[0] for _ in range(count)
                )
                words.append(f"{name}@{size} {100 * hits / count:.0f}%")
        for steps in CHAIN_STEPS:
            rng = Random(f"{seed}/chain/{steps}")
            scores = [answer_scores(model, tokenizer, TASKS["chain"].make(rng, steps)) for _ in range(count)]
            greedy = sum(exact for exact, _ in scores) / count
            words.append(
                f"chain@{steps} {100 * greedy:.0f}% p {sum(math.exp(p) for _, p in scores) / count:.2f}"
            )
        return " | ".join(words)

    return probe
