"""The seven nouns of the engine. This module imports nothing of ours.

    SamplingParams  frozen   what the user wants of the output
    Request         frozen   what was asked
    Sequence        mutable  what has happened; Engine.commit alone writes it
    Span            frozen   tokens of one sequence to run in this step
    StepPlan        frozen   what the policy decided
    Batch           frozen   the plan as packed tensors: what the model is handed
    StepResult      frozen   what the sampler decided

Shape suffixes, here and everywhere: T tokens packed over all spans, S spans, B pages per span, R rows that need
logits, N query heads, G kv heads, H head size, D model width, F MLP width, V vocabulary, L tokens of context.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.weight.adapter import Adapter, Mix

MAX_N = 128
"""Most samples of one request."""
MAX_LOGPROBS = 100
"""Most alternatives whose log-probability one position may report."""
MAX_STOPS = 64
"""Most stop strings, and most stop tokens, of one request."""
MAX_STOP_CHARS = 1024
"""Longest stop string: a longer one would hold back that much text."""
MAX_BIASED = 1024
"""Most token ids that one request biases, allows or forbids."""
MAX_GRAMMAR_CHARS = 64 << 10
"""Longest text of a grammar."""

FinishReason = Literal["stop", "length", "cancelled", "error"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """The form that an output must have."""

    kind: GrammarKind
    text: str = ""
    """The schema, regular expression or grammar; of `choice` a JSON list of texts; of `json_object` nothing."""

    def __post_init__(self) -> None:
        if self.kind not in ("json_object", "json_schema", "regex", "choice", "lark"):
            raise ValueError(f"grammar: no kind called {self.kind!r}")
        if len(self.text) > MAX_GRAMMAR_CHARS:
            raise ValueError(f"grammar has {len(self.text)} characters; at most {MAX_GRAMMAR_CHARS}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What the user wants of the output. Every field is checked here; a bad one raises ValueError at this line."""

    n: int = 1
    """Independent samples of the same prompt, 1 to 128."""
    temperature: float = 1.0
    """0 is greedy; otherwise logits are divided by it."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the prompt or the output; above 0."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token already in the output, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted per occurrence of a token in the output, in [-2, 2]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; each in [-100, 100]."""
    allowed_token_ids: tuple[int, ...] = ()
    """Only these are drawn, if there are any: an end token as well only if it is one of them."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Runs of tokens that the output never holds: the last of a run is not drawn after the others."""
    seed: int | None = None
    """Makes sampling repeatable: the draw depends on (seed, sample, position) and on nothing else."""
    max_tokens: int | None = None
    """Most tokens to generate; None is up to the context limit."""
    min_tokens: int = 0
    """No stop token before this many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the output, and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the output, beside the model's own end tokens."""
    ignore_eos: bool = False
    """Do not stop at the model's own end tokens."""
    logprobs: int | None = None
    """Report the chosen token's raw log-probability and those of this many most likely ones, per token."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None
    """Only tokens that keep the output in this form are drawn; it ends where the form is complete."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        object.__setattr__(self, "bad_words_ids", tuple(tuple(run) for run in self.bad_words_ids))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        for name, low, high in _RANGES:
            _check_range(name, getattr(self, name), low, high)
        self._check_lists()
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n={self.n} with temperature=0: {self.n} equal samples; use n=1, or sample")
        if self.grammar is not None and self.ignore_eos:
            raise ValueError("ignore_eos with a grammar: an output that is complete could not end")
        if self.grammar is not None and self.min_tokens:
            raise ValueError("min_tokens with a grammar: which of them says when the output ends?")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}")

    def _check_lists(self) -> None:
        if len(self.stop) > MAX_STOPS:
            raise ValueError(f"stop has {len(self.stop)} strings; at most {MAX_STOPS}")
        if any(not isinstance(s, str) or not 0 < len(s) <= MAX_STOP_CHARS for s in self.stop):
            raise ValueError(f"stop: every stop string must have 1 to {MAX_STOP_CHARS} characters")
        for name, ids in self.token_ids.items():
            most = MAX_STOPS if name == "stop_token_ids" else MAX_BIASED
            if len(ids) > most:
                raise ValueError(f"{name} has {len(ids)} entries; at most {most}")
            wrong = next((t for t in ids if not isinstance(t, int) or isinstance(t, bool) or t < 0), None)
            if wrong is not None:
                raise ValueError(f"{name}: {wrong!r} is not a token id, a whole number of 0 or more")
        if not all(self.bad_words_ids):
            raise ValueError("bad_words_ids: a run of tokens is empty")
        for token, bias in self.logit_bias.items():
            _check_range(f"logit_bias[{token}]", bias, -100, 100)

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Every token id that a field names."""
        runs = tuple(itertools.chain.from_iterable(self.bad_words_ids))
        found = {"stop_token_ids": self.stop_token_ids, "allowed_token_ids": self.allowed_token_ids}
        return {**found, "logit_bias": tuple(self.logit_bias), "bad_words_ids": runs}


_RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("n", 1, MAX_N), ("temperature", 0, 100), ("top_k", 0, None), ("top_p", 1e-9, 1), ("min_p", 0, 1),
    ("repetition_penalty", 1e-3, 1e3), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2),
    ("seed", -(2**63), 2**63 - 1), ("max_tokens", 1, None), ("min_tokens", 0, None),
    ("logprobs", 0, MAX_LOGPROBS), ("prompt_logprobs", 0, MAX_LOGPROBS),
)  # fmt: skip
_OPTIONAL = {"seed", "max_tokens", "logprobs", "prompt_logprobs"}
_FLOATS = {"temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}


def _check_range(name: str, value: object, low: float | None, high: float | None) -> None:
    if value is None and name in _OPTIONAL:
        return
    is_float = name in _FLOATS or name.startswith("logit_bias")
    if isinstance(value, bool) or not isinstance(value, (int, float) if is_float else int):
        raise ValueError(f"{name} must be {'a number' if is_float else 'a whole number'}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        raise ValueError(f"{name}={value!r} is out of range: it must be at least {low:g}{upper}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: one prompt, and how to continue it."""

    id: str
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    params: SamplingParams
    arrival: float = 0.0
    """Seconds, on the engine's clock."""
    priority: int = 0
    """Lower runs first, under policies that look at it."""
    salt: str = ""
    """Prefix-cache namespace: requests with different salts never share pages (tenants)."""
    adapter: str = ""
    """Name of the adapter that it runs with; empty is the base model."""

    def misfit(self, context: int, vocab: int) -> str:
        """Why an engine with this context and vocabulary could never run it; empty if it can."""
        if not self.prompt:
            return "the prompt is empty: give at least one token"
        if len(self.prompt) >= context:
            return (
                f"the prompt has {len(self.prompt)} tokens, and the context holds {context} with at least one for the "
                "answer: shorten the prompt"
            )
        bad = next((t for t in self.prompt if not 0 <= t < vocab), None)
        named = itertools.chain.from_iterable(self.params.token_ids.values())
        bad = next((t for t in named if t >= vocab), None) if bad is None else bad
        return "" if bad is None else f"token {bad} is not in the vocabulary of {vocab} tokens"


class Status(Enum):
    """Where a sequence is. Arrows: HELD -> WAITING -> RUNNING -> FINISHED; RUNNING -> WAITING | SWAPPED (paused)."""

    HELD = "held"  # a further sample of a request whose first sample has not finished the prompt
    WAITING = "waiting"  # no pages; runs from the longest cached prefix
    RUNNING = "running"  # holds pages
    SWAPPED = "swapped"  # its pages lie in host memory
    FINISHED = "finished"


@dataclass(slots=True)
class Sequence:
    """What has happened to one sample of a request. Engine.commit alone writes it.

    tokens        [ prompt ........................ | generated ...... ]
                  0                        prompt_len             len
    num_computed  keys and values exist for [0, num_computed); always < len(tokens) while it runs
    """

    id: int
    request: Request
    index: int  # which of the request's n samples
    seed: int  # of this sample's draws
    tokens: list[int]
    prompt_len: int
    num_computed: int = 0
    num_cached: int = 0
    """Tokens of the prompt taken from the prefix cache at the last admission."""
    num_scored: int = 1
    """Prompt tokens whose log-probability was delivered, if asked for; the first token has none."""
    status: Status = Status.WAITING
    parent: int | None = None
    """Sequence id this one was forked from."""
    adapter: Adapter | None = None
    finish_reason: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of one sequence, to run in this step. There is no phase.

        prompt [0, n)   chunk [512, 1024)   after a prefix hit [cached, n)   decode [n-1, n)
        speculation [n-1, n) plus draft     draft tree: plus parents

    The span is *sampled* when stop reaches the end of the known tokens: then it yields 1 + accepted drafts.
    """

    seq: int
    start: int
    stop: int
    draft: tuple[int, ...] = ()
    """Guessed tokens at positions stop, stop+1, ...; a chain."""

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, f"empty span {self}"

    def __len__(self) -> int:
        return self.stop - self.start + len(self.draft)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the policy decided for one step. Applied in this order: pause, swap, resume, then run the spans."""

    spans: tuple[Span, ...]
    recompute: tuple[int, ...] = ()
    """Sequences paused by dropping their pages; they go back to the front of the waiting queue."""
    swap_out: tuple[int, ...] = ()
    """Sequences paused by moving their pages to host memory."""
    swap_in: tuple[int, ...] = ()
    """Swapped sequences whose pages come back before the spans run."""
    reason: str = ""  # one line, for logs and traces


class Run(NamedTuple):
    """Consecutive stored positions that some rows of a batch read. A hole (evicted pages) makes several."""

    first_row: int
    end_row: int
    first_page: int
    """Index into Reads.pages_B."""
    start: int
    """Position of the first token, which is the first of its page."""
    length: int


@dataclass(frozen=True)
class Reads:
    """What the rows of a batch read from one cache group. Runs of the same rows follow each other, by position."""

    pages_B: Tensor
    """Page numbers of every run, one run after the other; int64."""
    runs: tuple[Run, ...]

    @cached_property
    def runs_W5(self) -> Tensor:
        """The runs as int64."""
        from torch import int64, tensor  # here, so that importing this module loads nothing

        return tensor(self.runs, dtype=int64).view(-1, 5)

    def pages(self, run: Run, page_tokens: int) -> Tensor:
        """The run's page numbers."""
        return self.pages_B[run.first_page : run.first_page + -(-run.length // page_tokens)]

    def by_rows(self) -> Iterator[tuple[slice, list[Run]]]:
        """The runs of each span's rows."""
        for (first, end), runs in itertools.groupby(self.runs, key=lambda run: run[:2]):
            yield slice(first, end), list(runs)


@dataclass(frozen=True, slots=True)
class Scored:
    """Consecutive rows of one span whose next tokens are known: prompt tokens to score. Part of a Batch."""

    seq: int
    first_row: int
    targets: tuple[int, ...]
    """The token that follows each row."""
    count: int
    """How many of the likeliest tokens to report beside it."""


@dataclass(frozen=True)
class Batch:
    """The plan as packed tensors. Rows of span s are starts[s] .. starts[s+1]."""

    spans: tuple[Span, ...]
    ids_T: Tensor
    """Token ids, int64."""
    positions_T: Tensor
    """Logical position of each row, int64."""
    starts: tuple[int, ...]
    """S + 1 row offsets."""
    slots: tuple[Tensor, ...]
    """Per cache group, int64 [T]: where each row's key and value are written: page * page_tokens + offset."""
    reads: tuple[Reads, ...]
    """Per cache group: the stored positions that each span's rows may read."""
    rows_R: Tensor
    """Rows whose logits are sampled, int64, span after span."""
    scored: tuple[Scored, ...] = ()
    """Rows whose next token is known already and whose log-probability was asked for (prompt_logprobs)."""
    mix: Mix | None = None
    """Rows that run with an adapter; None if all are the base model's."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Raw log-probabilities at one position: the token's own, and the likeliest alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """What one span yields: tokens accepted (empty unless the span was sampled) and log-probabilities if asked for."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    error: str = ""
    """Why nothing more can come of the sequence; it ends."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the sampler decided, span by span in the order of the plan."""

    accepted: tuple[Accepted, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one sample: what Engine.step returns and a stream is made of."""

    request: str
    index: int
    seq: int
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    """Why it ended with "error"."""
    cached: int = 0
    """With the first tokens of a sample: how many of the prompt's the prefix cache had."""
