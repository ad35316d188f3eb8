"""Runner: a batch through the model. Logits exist only for rows that need them; prompt rows are scored in slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.forward.decoder import Decoder
from headrace.forward.pooling import pool
from headrace.forward.recording import Recordings
from headrace.kernels.route import gather
from headrace.kv.cache import KVCache
from headrace.sample.sampler import raw_logprobs
from headrace.types import Batch, HiddenSum, Logprob, Scored
from headrace.weight.adapter import Adapter

SCORED_ROWS = 64
"""Prompt rows whose logits are held at once."""


class Logits(NamedTuple):
    """What a forward pass yields."""

    logits_RV: Tensor
    """Of batch.rows_R. Overwritten by the next pass."""
    scores: Mapping[int, tuple[Logprob, ...]]
    """Raw log-probabilities of prompt tokens, by sequence, where asked for."""
    sums: Mapping[int, HiddenSum]
    """Pooled hidden states, by sequence, where asked for."""


class Runner:
    """Holds the model and its cache; one call per step."""

    def __init__(self, decoder: Decoder, kv: KVCache, *, record: bool = False) -> None:
        """record: passes of a few rows may be played back (headrace.forward.recording)."""
        self._decoder = decoder
        self._kv = kv
        self.recordings = Recordings(self._pass) if record else None
        self.tap: Callable[[Tensor], None] | None = None
        """Told the logits of every slice of prompt rows that is scored, in order: [rows, V], not to be kept."""

    def let_go(self, adapter: Adapter) -> None:
        """Keeps nothing of this adapter."""
        if self.recordings is not None:
            self.recordings.let_go(adapter)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Logits:
        run = self._pass if self.recordings is None else self.recordings
        hidden_TD, logits_RV = run(batch)
        scores = {part.seq: self._score(part, hidden_TD) for part in batch.scored}
        sums = {part.seq: pool(part, hidden_TD) for part in batch.pooled}
        return Logits(logits_RV, scores, sums)

    def _pass(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states [T, D] and logits [R, V]."""
        hidden_TD = self._decoder.forward(batch, self._kv)
        every = len(batch.rows_R) == len(hidden_TD)
        return hidden_TD, self._decoder.logits(hidden_TD if every else gather(hidden_TD, batch.rows_R))

    def _score(self, part: Scored, hidden_TD: Tensor) -> tuple[Logprob, ...]:
        found: list[Logprob] = []
        for i in range(0, len(part.targets), SCORED_ROWS):
            targets = part.targets[i : i + SCORED_ROWS]
            first = part.first_row + i
            logits_RV = self._decoder.logits(hidden_TD[first : first + len(targets)])
            found += raw_logprobs(logits_RV, targets, part.count)
            if self.tap is not None:
                self.tap(logits_RV)
        return tuple(found)
