"""Sampler: logits to tokens. Runs processors row by row, chooses, and follows a draft as long as it guesses right.

Processors see a place only once the walk has come there, with everything before it accepted: what they remember follows
the text. Who chooses the token is the slot `verifier`; without one, the token at a position is drawn as if it were
alone, and a guess is right if it is that token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from headrace.errors import ConfigError
from headrace.kernels.argmax import argmax
from headrace.params import SamplingParams
from headrace.sample import draw
from headrace.sample.constrained import Constrained, Constraints
from headrace.sample.processors import SLOT, Processor, State
from headrace.types import Accepted, Delta, Guesses, HiddenSum, Logprob, Span, StepResult, Uniform
from headrace.types import Sequence as Seq

_MOMENT_S = 0.01
Choose = Callable[[Tensor, Guesses, Uniform], int]
"""(logits [V] after the processors, guesses, draws of the place) -> token."""
Speaks = Callable[[Seq, Tensor], bool]
"""(sequence, raw logits [V]) -> whether its next token is chosen from them."""
_NOBODY = Guesses()
_NOT_FINITE = "the model computed NaN or infinity for this sequence"


def as_if_alone(logits_V: Tensor, guesses: Guesses, uniform: Uniform) -> int:
    """The token that comes where nobody guesses."""
    return draw.choose(logits_V, uniform("token"))


class Sampler:
    """Holds each living sequence's processor states; everything else comes with the call."""

    def __init__(
        self,
        processors: Sequence[Processor],
        eos: Sequence[int],
        constraints: Constraints | None = None,
        choose: Choose = as_if_alone,
        speaks: Speaks = lambda seq, logits_V: True,
    ) -> None:
        """constraints: what makes a state of a request's grammar; None where there is no tokenizer to make one of.
        choose: see Verifier.choose. speaks: asked before each token; where it says no, the sequence gets no more of
        them in this step."""
        self._processors = tuple(processors)
        here = {type(processor) for processor in processors}
        self._left_out = [other for other in SLOT.parse(SLOT.default) if type(other) not in here]
        self._eos = tuple(eos)
        self.constraints = constraints
        self._verify, self._speaks = choose, speaks
        self.tap: Callable[[Seq, Tensor], None] | None = None
        """Told the logits that a sequence's token is drawn from, after the processors: [V], not to be kept."""
        self._states: dict[int, list[State]] = {}
        self._grammars: dict[int, Constrained] = {}

    def check(self, params: SamplingParams) -> None:
        """Raises ConfigError for what no sequence here can be given."""
        if params.grammar is not None and self.constraints is None:
            raise ConfigError("a grammar needs the model's tokenizer and its end token, and there is none")
        for other in self._left_out:
            if other.init(params, (), 0, self._eos) is not None:
                name = SLOT.name_of(other)
                raise ConfigError(f"this asks for {name}, which the stack leaves out: add it to --processors")

    def start(self, seq: Seq) -> None:
        """A sequence appears."""
        params = seq.request.params
        eos = () if params.ignore_eos else self._eos
        states = (p.init(params, seq.tokens, seq.prompt_len, eos) for p in self._processors)
        self._states[seq.id] = [state for state in states if state is not None]
        if params.grammar is not None:
            assert self.constraints is not None, "check() lets no grammar in"
            self._grammars[seq.id] = self.constraints.start(params.grammar, seq.tokens[seq.prompt_len :])

    def fork(self, parent: int, child: int) -> None:
        """`child` goes on from where `parent` is."""
        self._states[child] = [state.fork() for state in self._states[parent]]
        if parent in self._grammars:
            self._grammars[child] = self._grammars[parent].fork()

    def forget(self, seq: int) -> None:
        """A sequence has ended."""
        del self._states[seq]
        self._grammars.pop(seq, None)

    def compiling(self) -> set[int]:
        """Sequences that cannot be sampled yet: their grammars are being compiled."""
        return {seq for seq, grammar in self._grammars.items() if not grammar.compiled.done()}

    def wait(self) -> list[Delta]:
        """Until a grammar that is being compiled is ready, or a moment; nothing comes of it."""
        pending = [self._grammars[seq].compiled for seq in self.compiling()]
        futures.wait(pending, _MOMENT_S, futures.FIRST_COMPLETED)
        return []

    def forced(self, seq: int) -> tuple[int, ...]:
        """Tokens that the sequence's grammar leaves no choice about: a draft that is right."""
        return self._grammars[seq].forced if seq in self._grammars else ()

    def look_ahead(self, spans: Sequence[Span]) -> None:
        """What will be needed for these spans besides logits is computed meanwhile."""
        for span in spans:
            if span.seq in self._grammars:
                self._grammars[span.seq].look_ahead()

    def __len__(self) -> int:
        return len(self._states)

    def __call__(
        self,
        spans: Sequence[Span],
        sequences: Mapping[int, Seq],
        logits_RV: Tensor,
        scores: Mapping[int, tuple[Logprob, ...]],
        sums: Mapping[int, HiddenSum] = MappingProxyType({}),
    ) -> StepResult:
        """Chooses tokens for every span that reaches the end of its sequence.

        logits_RV: rows of those spans, in order, 1 + len(draft) each. scores: prompt log-probabilities by sequence.
        sums: pooled hidden states of those that are not sampled at all.
        """
        greedy_R = argmax(logits_RV).tolist()
        finite_R = logits_RV.sum(-1).isfinite().tolist()
        accepted, row = [], 0
        for span in spans:
            seq = sequences[span.seq]
            prompt_logprobs = scores.get(span.seq, ())
            if seq.request.pooling is not None:
                accepted.append(_pooled(sums.get(span.seq)))
                continue
            if span.stop < len(seq):
                accepted.append(Accepted(prompt_logprobs=prompt_logprobs))
                continue
            count = 1 + len(span.draft)
            rows = slice(row, row + count)
            row += count
            try:
                if not all(finite_R[rows]):
                    raise ConfigError(f"non_finite_logits: {_NOT_FINITE}")
                tokens, logprobs = self._sample(seq, span, logits_RV[rows], greedy_R[rows])
            except ConfigError as error:  # of this sequence alone
                accepted.append(Accepted((), (), prompt_logprobs, error=str(error)))
            else:
                accepted.append(Accepted(tokens, logprobs, prompt_logprobs))
        assert row == len(logits_RV), "logits of rows that nobody samples"
        return StepResult(tuple(accepted))

    def _sample(
        self, seq: Seq, span: Span, logits_RV: Tensor, greedy_R: list[int]
    ) -> tuple[tuple[int, ...], tuple[Logprob, ...]]:
        tokens: list[int] = []
        logprobs: list[Logprob] = []
        guess: int | None = -1
        while guess is not None:
            row, below, guesses = 1 + guess, span.below(guess), _NOBODY
            if not self._speaks(seq, logits_RV[row]):
                break
            if below:
                law_V = span.laws[below[0]] if span.laws else None
                guesses = Guesses(tuple(span.draft[child] for child in below), law_V)
            token = self._choose(seq, logits_RV[row], greedy_R[row], span.stop + len(tokens), guesses)
            params = seq.request.params
            if params.logprobs is not None:
                logprobs += raw_logprobs(
                    logits_RV[row : row + 1], [token], params.logprobs, params.logprob_token_ids
                )
            tokens.append(token)
            guess = next((child for child in below if span.draft[child] == token), None)
        return tuple(tokens), tuple(logprobs)

    def _choose(self, seq: Seq, raw_V: Tensor, greedy: int, position: int, guesses: Guesses) -> int:
        states, grammar = self._states[seq.id], self._grammars.get(seq.id)
        changed, logits_V = bool(states) or grammar is not None, raw_V
        if grammar is not None:
            logits_V = grammar.masked(raw_V)
        elif states:
            logits_V = raw_V.to(torch.promote_types(raw_V.dtype, torch.float32), copy=True)
        for state in states:
            logits_V = state.apply(logits_V)
        if seq.request.params.temperature == 0:
            token = int(argmax(logits_V[None])) if changed else greedy
        else:
            if self.tap is not None:
                self.tap(seq, logits_V)
            token = self._verify(logits_V, guesses, partial(draw.uniform, seq.seed, position))
        if changed and not float(logits_V[token]) > -math.inf:
            raise ConfigError("nothing can follow: together, what was asked for forbids every token")
        for state in states:
            state.accept(token, raw_V)
        if grammar is not None:
            grammar.accept(token)
        return token


def _pooled(found: HiddenSum | None) -> Accepted:
    """What a span of a pooled prompt yields: its sum, and once it is complete its vector."""
    if found is None or not found.embedding or bool(found.total_D.isfinite().all()):
        return Accepted(hidden_sum=found)
    return Accepted(error=f"non_finite_embedding: {_NOT_FINITE}")


def raw_logprobs(
    logits_RV: Tensor, tokens: Sequence[int], count: int, tracked: Sequence[int] = ()
) -> list[Logprob]:
    """Log-probabilities of `tokens`, one per row, before any processor; beside each, those of the `count` likeliest of
    its row and then those of the `tracked` ones that are not among them.
    """
    wide = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    logprobs_RV = torch.log_softmax(wide, -1)
    own_R = logprobs_RV.gather(1, torch.tensor(tokens, device=wide.device)[:, None])[:, 0].tolist()
    values_RK, ids_RK = logprobs_RV.topk(min(count, logprobs_RV.shape[1]), dim=-1)
    tops = [tuple(zip(i, v, strict=True)) for i, v in zip(ids_RK.tolist(), values_RK.tolist(), strict=True)]
    if tracked:
        rest_RK = logprobs_RV[:, torch.tensor(tracked, device=wide.device)].tolist()
        tops = [_with_tracked(top, tracked, rest) for top, rest in zip(tops, rest_RK, strict=True)]
    return [Logprob(token, own, top) for token, own, top in zip(tokens, own_R, tops, strict=True)]


def _with_tracked(
    top: tuple[tuple[int, float], ...], tracked: Sequence[int], values: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    return tuple({**dict(top), **dict(zip(tracked, values, strict=True))}.items())
