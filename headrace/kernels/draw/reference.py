"""draw in plain PyTorch: what the fast kernels are compared with. The contracts are in `headrace.kernels.draw`."""

import torch
from torch import Tensor


def top_k(logits_V: Tensor, k: int) -> Tensor:
    """Forbid all but the k largest and what is equal to the least of them."""
    if k >= len(logits_V):
        return logits_V
    least = torch.topk(logits_V, k, sorted=True).values[-1]
    return logits_V.masked_fill(logits_V < least, -torch.inf)


def top_p(logits_V: Tensor, p: float) -> Tensor:
    """Forbid what comes after p of the probability, largest first."""
    sorted_V, order_V = logits_V.double().sort(descending=True, stable=True)
    probs_V = torch.softmax(sorted_V, -1)
    before_V = probs_V.cumsum(-1) - probs_V  # probability of everything more likely
    return logits_V.index_fill(0, order_V[before_V >= p], -torch.inf)


def min_p(logits_V: Tensor, log_p: float) -> Tensor:
    """Forbid what is below the largest by more than -log_p."""
    return logits_V.masked_fill(logits_V < logits_V.max() + log_p, -torch.inf)


def draw(logits_V: Tensor, u: float) -> int:
    """Where the cumulative probability passes u."""
    cumulative_V = torch.softmax(logits_V.double(), -1).cumsum(-1)
    target = cumulative_V[-1] * u
    token = int(torch.searchsorted(cumulative_V, target, right=True))
    return min(token, len(logits_V) - 1)
