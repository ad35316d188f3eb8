"""The training loop: micro-batches in bf16 autocast, state saved every few minutes, exact resumption.

The state of a run is a folder: weights and optimiser buffers as safetensors, progress as JSON. A new state is written
beside the old one and then renamed, so that a kill at any time leaves a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from training.mixture import Corpus, Mixture
from training.model import Llama
from training.muon import Optimiser
from training.recipe import Recipe

SAVE_EVERY = 150.0  # seconds
PROBE_EVERY = 540.0  # seconds
LINE_EVERY = 25  # steps


def hard_loss(hidden_TD: Tensor, table_VD: Tensor, target_T: Tensor, weight_T: Tensor) -> Tensor:
    """Sum of weighted cross-entropies, in nats."""
    logits_TV = F.linear(hidden_TD, table_VD).float()
    return (F.cross_entropy(logits_TV, target_T, reduction="none") * weight_T).sum()


def soft_loss(hidden_TD: Tensor, table_VD: Tensor, teacher_TV: Tensor, weight_T: Tensor) -> Tensor:
    """Sum of weighted cross-entropies to the teacher's distribution (its KL up to a constant), in nats."""
    logits_TV = F.linear(hidden_TD, table_VD).float()
    return -((teacher_TV.float().softmax(-1) * logits_TV.log_softmax(-1)).sum(-1) * weight_T).sum()


@torch.no_grad()
def inherit_embeddings(student: Llama, teacher: Llama) -> None:
    """Start from the teacher's embeddings, seen along their main directions: [V, D] -> [V, narrower D]."""
    table_VD = teacher.model.embed_tokens.weight
    directions = torch.linalg.svd(table_VD, full_matrices=False).Vh[: student.shape.width]
    student.model.embed_tokens.weight.copy_(table_VD @ directions.T)


class Run:
    """One model in training. `probe(model, tokenizer)` returns a line on what it can do so far."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        corpus: Corpus,
        folder: Path,
        probe: Callable[[Llama, Tokenizer], str],
        teacher: Llama | None = None,
        compiled: bool = True,
        workers: int = 2,
    ) -> None:
        self.recipe, self.tokenizer, self.corpus, self.folder = recipe, tokenizer, corpus, folder
        self.probe, self.teacher = probe, teacher
        self.model = Llama(recipe.shape, seed=recipe.seed)
        if teacher is not None:
            inherit_embeddings(self.model, teacher)
        self.optimiser = Optimiser(self.model, recipe.matrix_lr, recipe.other_lr)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.rows_seen: set[int] = set()
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)
        # One micro-batch per core, each on a single thread: no barrier inside an operation, so a busy core delays
        # its own micro-batch only. Gradients are summed in order, whichever comes first.
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.block = wrap(lambda layer, x, cos, sin: layer(x, cos, sin))
        self.loss = wrap(hard_loss if teacher is None else soft_loss)
        if (folder / "progress.json").exists():
            self.resume()

    def stop(self, *_: object) -> None:
        """On SIGTERM: finish the step, save, and end."""
        self.stopping = True

    def resume(self) -> None:
        progress = json.loads((self.folder / "progress.json").read_text())
        self.step, self.seen, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        self.model.load_state_dict(load_file(self.folder / "model.safetensors"))
        self.optimiser.load(load_file(self.folder / "optimiser.safetensors"))

    def save(self) -> None:
        fresh, old = self.folder.with_suffix(".new"), self.folder.with_suffix(".old")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(self.model.state_dict(), fresh / "model.safetensors")
        save_file(self.optimiser.state(), fresh / "optimiser.safetensors")
        progress = {"step": self.step, "tokens": self.seen, "seconds": round(self.seconds)}
        (fresh / "progress.json").write_text(json.dumps(progress))
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            os.rename(self.folder, old)
        os.rename(fresh, self.folder)

    def hidden(self, model: Llama, ids_BT: Tensor) -> Tensor:
        """As `Llama.hidden`, with the compiled block."""
        T = ids_BT.shape[1]
        x_BTD = model.model.embed_tokens(ids_BT).bfloat16()
        cos_TH, sin_TH = model.cos_TH[:T].bfloat16(), model.sin_TH[:T].bfloat16()
        for layer in model.model.layers:
            x_BTD = self.block(layer, x_BTD, cos_TH, sin_TH)
        return model.model.norm(x_BTD)

    def train_step(self, mixture: Mixture) -> float:
        """One batch: gradients of all micro-batches, one update. Returns the weighted mean loss in nats."""
        recipe, rows = self.recipe, max(1, self.recipe.micro // mixture.row)
        ids, weights = (torch.from_numpy(a) for a in mixture.batch(self.step, recipe.batch // mixture.row))
        scale = float(weights[:, 1:].sum())
        parts = [
            (part, weight, scale) for part, weight in zip(ids.split(rows), weights.split(rows), strict=True)
        ]
        if mixture.row not in self.rows_seen:  # compile in one thread before several run
            self.gradients(parts[0])
            self.rows_seen.add(mixture.row)
        total, sums = 0.0, None
        for loss, grads in self.pool.map(self.gradients, parts):
            total += loss
            sums = grads if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
        for parameter, grad in zip(self.model.parameters(), sums, strict=True):
            parameter.grad = grad
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(recipe.rate(self.step, self.seen))
        self.step += 1
        self.seen += recipe.batch
        return total

    def gradients(self, task: tuple[Tensor, Tensor, float]) -> tuple[float, list[Tensor]]:
        """Loss of one micro-batch and its gradients. Runs on one core, beside others."""
        part, weight, scale = task
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_TD = self.hidden(self.model, part[:, :-1].contiguous()).flatten(0, 1)
            loss = (
                self.loss(
                    hidden_TD,
                    self.model.model.embed_tokens.weight,
                    self.targets(part),
                    weight[:, 1:].flatten(),
                )
                / scale
            )
        return float(loss.detach()), list(torch.autograd.grad(loss, list(self.model.parameters())))

    def targets(self, part: Tensor) -> Tensor:
        """The next tokens, or the teacher's logits for them."""
        if self.teacher is None:
            return part[:, 1:].flatten()
        with torch.no_grad():
            hidden_TD = self.hidden(self.teacher, part[:, :-1].contiguous()).flatten(0, 1)
            return F.linear(hidden_TD, self.teacher.model.embed_tokens.weight)

    def lines(self, until: int | None = None) -> Iterator[str]:
        """Train to the end of the recipe (or to `until` tokens), yielding progress lines."""
        end = min(self.recipe.tokens, until or self.recipe.tokens)
        mixtures: dict[tuple, Mixture] = {}
        saved = probed = time.monotonic()
        losses: list[float] = []
        clock = time.monotonic()
        while self.seen < end and not self.stopping:
            row, shares = self.recipe.stage(self.seen).rows(self.step)
            key = (row, *shares.items())
            if key not in mixtures:
                mixtures[key] = Mixture(self.tokenizer, self.corpus, row, shares, self.recipe.seed)
            losses.append(self.train_step(mixtures[key]))
            now = time.monotonic()
            self.seconds += now - clock
            speed, clock = self.recipe.batch / (now - clock), now
            if self.step % LINE_EVERY == 0:
                yield (
                    f"step {self.step} tokens {self.seen / 1e6:.2f}M row {row} loss "
                    f"{sum(losses) / len(losses):.3f} rate {self.recipe.rate(self.step, self.seen):.2f} "
                    f"{speed:.0f} tok/s {self.seconds / 60:.1f} min"
                )
                losses.clear()
            if now - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            if now - probed > PROBE_EVERY:
                yield self.probe(self.model, self.tokenizer)
                probed = clock = time.monotonic()
        self.save()
        if not self.stopping:
            yield self.probe(self.model, self.tokenizer)
