"""Muon for the hidden matrices, AdamW for the embedding and the norms, as one optimiser with one learning-rate factor.

Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, orthogonalised by five
Newton-Schulz steps. Matrices of one shape are stacked and orthogonalised together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalise(g_XRC: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of every matrix of the stack to about 1 (quintic Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g_XRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x


class Optimiser:
    """`step(factor)` applies one update with all learning rates multiplied by `factor`."""

    def __init__(
        self, model: nn.Module, matrix_lr: float = 0.01, other_lr: float = 2e-3, decay: float = 0.1
    ) -> None:
        self.matrix_lr, self.decay, self.momentum = matrix_lr, decay, 0.95
        named = dict(model.named_parameters())
        self.matrices = {n: p for n, p in named.items() if p.ndim == 2 and "embed" not in n}
        self.buffers = {n: torch.zeros_like(p) for n, p in self.matrices.items()}
        self.others = {n: p for n, p in named.items() if n not in self.matrices}
        self.first = {n: torch.zeros_like(p) for n, p in self.others.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.others.items()}
        self.other_lr, self.betas, self.count = other_lr, (0.9, 0.95), 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        self.count += 1
        self.step_matrices(self.matrix_lr * factor)
        self.step_others(self.other_lr * factor)

    def step_matrices(self, lr: float) -> None:
        stacks: dict[torch.Size, list[str]] = {}
        for name, parameter in self.matrices.items():
            self.buffers[name].lerp_(parameter.grad, 1 - self.momentum)
            stacks.setdefault(parameter.shape, []).append(name)
        for (rows, columns), names in stacks.items():
            nesterov = [self.matrices[n].grad.lerp(self.buffers[n], self.momentum) for n in names]
            updates = orthogonalise(torch.stack(nesterov)).float() * max(1.0, rows / columns) ** 0.5
            for name, update in zip(names, updates, strict=True):
                self.matrices[name].mul_(1 - lr * self.decay).add_(update, alpha=-lr)

    def step_others(self, lr: float) -> None:
        b1, b2 = self.betas
        for name, p in self.others.items():
            self.first[name].lerp_(p.grad, 1 - b1)
            self.second[name].lerp_(p.grad.square(), 1 - b2)
            mean = self.first[name] / (1 - b1**self.count)
            spread = (self.second[name] / (1 - b2**self.count)).sqrt_().add_(1e-8)
            p.addcdiv_(mean, spread, value=-lr)

    def state(self) -> dict[str, Tensor]:
        """Every buffer under a flat name, for a safetensors file."""
        groups = {"momentum": self.buffers, "first": self.first, "second": self.second}
        flat = {f"{group}:{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
        return flat | {"count": torch.tensor(self.count)}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            if name != "count":
                tensor.copy_(state[name])
        self.count = int(state["count"])
