"""How far a lossy stack leads a model away from itself: against the same model without any compression.

kl          nats per token: how much less likely the stack finds what the model itself would say next, over the whole
            vocabulary, at every position of held-out text
same        share of those positions at which both find the same token likeliest
divergence  tokens of a greedy answer before the first that differs, of LENGTH

Both read the same tokens: text for the first two, and what each has said so far for the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from headrace.box import held_out_text
from headrace.box.evaluate import Score, Share, score
from headrace.llm import LLM
from headrace.params import SamplingParams

TOKENS = 256
"""Of a piece of text: the log-probabilities of the whole vocabulary are held for each of them."""
PROMPT, LENGTH = 64, 64
"""Tokens that greedy answers begin after, and that they have."""


def drift(llm: LLM, reference: LLM, count: int, seed: int, text: str | None = None) -> Iterator[Score]:
    """The three figures over at most `count` pieces of text. The models share a vocabulary."""
    pieces = cut(llm, held_out_text() if text is None else text, count)
    divergence: list[Share] = []
    differ: list[Share] = []
    same: list[Share] = []
    for piece in pieces:
        kl, equal = compare(log_probs(reference, piece), log_probs(llm, piece))
        differ.append((kl, len(piece) - 1.0))
        same.append((equal, len(piece) - 1.0))
        divergence.append((float(first_difference(llm, reference, piece[:PROMPT])), 1.0))
    size = f"{len(pieces[0])} tokens"
    yield score("drift", "KL", differ, seed, size)
    yield score("drift", "same", same, seed, size)
    yield score("drift", "divergence", divergence, seed, f"{LENGTH} tokens")


def cut(llm: LLM, text: str, count: int) -> list[list[int]]:
    """Pieces of the text's tokens, none overlapping, all of one length but the last."""
    ids = llm.tokenizer.encode(text, add_special=False)
    first = [] if llm.tokenizer.bos is None else [llm.tokenizer.bos]
    length = min(TOKENS, llm.engine.context - LENGTH - 1) - len(first)
    pieces = [[*first, *ids[start : start + length]] for start in range(0, len(ids), length)]
    return [piece for piece in pieces[:count] if len(piece) > 1]


def log_probs(llm: LLM, piece: Sequence[int]) -> Tensor:
    """[tokens - 1, V] float32: of what may follow each token of the piece but the last."""
    found: list[Tensor] = []
    with _tapped(llm, found):
        llm.generate([piece], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0), progress=False)
    return torch.cat(found)


def compare(own_TV: Tensor, other_TV: Tensor) -> tuple[float, float]:
    """Sum of KL(own || other) over the rows, and in how many of them the likeliest token is the same."""
    kl_T = (own_TV.exp() * (own_TV - other_TV)).nan_to_num(0.0).double().sum(-1)
    return float(kl_T.sum()), float((own_TV.argmax(-1) == other_TV.argmax(-1)).sum())


def first_difference(llm: LLM, reference: LLM, prompt: Sequence[int]) -> int:
    """Tokens that both continue the prompt with, greedily, before they part; LENGTH if they do not."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    ours, theirs = (
        one.generate([prompt], params, progress=False)[0].samples[0].token_ids for one in (llm, reference)
    )
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), LENGTH)


@contextmanager
def _tapped(llm: LLM, found: list[Tensor]) -> Iterator[None]:
    """Appends the log-probabilities of all rows that are scored meanwhile."""
    runner = llm.engine.runner
    runner.tap = lambda logits_RV: found.append(torch.log_softmax(logits_RV.float(), -1).cpu())
    try:
        yield
    finally:
        runner.tap = None
