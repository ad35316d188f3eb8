"""The seven nouns of the engine. Of ours, this module imports only the first of them.

    SamplingParams  frozen   what the user wants of the output (headrace/params.py)
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from headrace.params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from headrace.kv.chunks import Segment
    from headrace.kv.present import Present
    from headrace.kv.selection import Selecting
    from headrace.weight.adapter import Adapter, Mix

PoolingKind = Literal["mean", "last"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
Uniform = Callable[[str], float]
"""Purpose -> a number in [0, 1) of one place of a sequence."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """The prompt's final hidden states, normed, as one vector: nothing is generated."""

    kind: PoolingKind = "last"
    """The mean of all of them, or the last token's, which has seen all others."""
    normalize: bool = False
    """Scale it to length 1."""
    dimensions: int | None = None
    """Keep the first ones only, for models trained so that these say nearly everything (Matryoshka)."""


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
    pooling: Pooling | None = None
    """Pool it instead of continuing it; takes no sampling parameters."""
    salt: str = ""
    """Prefix-cache namespace: requests with different salts never share pages (tenants)."""
    adapter: str = ""
    """Name of the adapter that it runs with; empty is the base model."""

    def misfit(self, context: int, vocab: int) -> str:
        """Why an engine with this context and vocabulary could never run it; empty if it can."""
        if not self.prompt:
            return "the prompt is empty: give at least one token"
        if self.pooling is not None and self.params != SamplingParams():
            return "pooling generates nothing, so it takes no sampling parameters"
        if self.pooling is not None and len(self.prompt) > context:
            return (
                f"the input has {len(self.prompt)} tokens, and the context holds {context}: shorten the input"
            )
        if self.pooling is None and len(self.prompt) >= context:
            return (
                f"the prompt has {len(self.prompt)} tokens, and the context holds {context} with at least one for the "
                "answer: shorten the prompt"
            )
        start = self.params.prompt_logprobs_start
        if start > 1 and start >= len(self.prompt):
            return f"prompt_logprobs_start={start}: the prompt has only {len(self.prompt)} tokens"
        bad = next((t for t in self.prompt if not 0 <= t < vocab), None)
        named = itertools.chain.from_iterable(self.params.token_ids.values())
        bad = next((t for t in named if t >= vocab), None) if bad is None else bad
        return "" if bad is None else f"token {bad} is not in the vocabulary of {vocab} tokens"


class Status(Enum):
    """Where it is. HELD -> WAITING -> RUNNING -> FINISHED; RUNNING -> WAITING | SWAPPED; any -> PAUSED -> WAITING."""

    HELD = "held"  # a further sample of a request whose first sample has not finished the prompt
    WAITING = "waiting"  # no pages; runs from the longest cached prefix
    RUNNING = "running"  # holds pages
    SWAPPED = "swapped"  # its pages lie in host memory
    PAUSED = "paused"  # nobody takes its tokens; no pages
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
    index: int
    """Which of the request's n samples."""
    seed: int
    """Of this sample's draws."""
    tokens: list[int]
    prompt_len: int
    num_computed: int = 0
    num_cached: int = 0
    """Tokens of the prompt taken from the prefix cache at the last admission."""
    num_scored: int = 1
    """Prompt tokens whose log-probability was delivered, if asked for; the first token has none."""
    hidden_sum: HiddenSum | None = None
    """Of a prompt whose mean is asked for, as far as it was computed."""
    status: Status = Status.WAITING
    parent: int | None = None
    """Sequence id this one was forked from."""
    adapter: Adapter | None = None
    """None is the base model."""
    finish_reason: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len


class Guesses(NamedTuple):
    """What was guessed to come at one place of a sequence."""

    tokens: tuple[int, ...] = ()
    law_V: Tensor | None = None
    """What they were drawn from, float64 probabilities; None if they were not drawn."""


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
    """Guessed tokens: at positions stop, stop+1, ... if they are a chain."""
    parents: tuple[int, ...] | None = None
    """Which guess, of those before it, each one follows: -1 is none of them but the last known token. None for a chain.
    Guesses that follow the same one differ."""
    laws: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)
    """What each guess was drawn from, float64 probabilities [V]; empty if they were not drawn."""

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, f"empty span {self}"
        assert self.parents is None or all(-1 <= p < i for i, p in enumerate(self.parents)), "no tree"

    def __len__(self) -> int:
        return self.stop - self.start + len(self.draft)

    @property
    def positions(self) -> list[int]:
        """Of each row."""
        if self.parents is None:
            return list(range(self.start, self.start + len(self)))
        found = list(range(self.start, self.stop))
        known = len(found)
        for parent in self.parents:
            found.append(found[known + parent] + 1)
        return found

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self.stop + len(self.draft) if self.parents is None else max(self.positions) + 1

    def below(self, guess: int) -> tuple[int, ...]:
        """The guesses that follow a guess, or the last known token, -1, by their number."""
        if self.parents is None:
            return (guess + 1,) if guess + 1 < len(self.draft) else ()
        return tuple(child for child, parent in enumerate(self.parents) if parent == guess)


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
    reason: str = ""
    """One line, for logs and traces."""

    @property
    def idle(self) -> bool:
        """Whether it neither runs nor pauses anybody."""
        return not (self.spans or self.recompute or self.swap_out)

    @property
    def num_tokens(self) -> int:
        return sum(len(span) for span in self.spans)


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


class Fold(NamedTuple):
    """A block of tokens that leaves a group's window in this step, and the records that change (kv/summary.py)."""

    end: int
    """The position after the block that has become whole."""
    window_B: Tensor
    """int64: the pages of the window's positions before that; the first that leave come first."""
    sink_B: Tensor
    """int64: those of the sink."""
    before_B: Tensor
    """int64: those of the record so far; none if nothing has left before."""
    after_B: Tensor
    """int64: those of the record that it becomes."""
    queries_B: Tensor
    """int64: those of the queries of the block that has become whole; none if they are not stored."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Consecutive rows of one span whose next tokens are known: prompt tokens to score. Part of a Batch."""

    seq: int
    first_row: int
    targets: tuple[int, ...]
    """The token that follows each row."""
    count: int
    """How many of the likeliest tokens to report beside it."""


class HiddenSum(NamedTuple):
    """The hidden states of a prompt, normed, added up as far as they were computed."""

    total_D: Tensor
    """float64, added position by position: the same bits however the prompt was cut into spans."""
    stop: int
    """Positions before this one are in it."""
    embedding: bytes = b""
    """Once the prompt is complete: float32, little-endian."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """Consecutive rows of one span whose hidden states are pooled. Part of a Batch."""

    seq: int
    first_row: int
    end_row: int
    before: HiddenSum | None
    """Of the rows before these."""
    stop: int
    """Position after the last row."""
    complete: Pooling | None = None
    """How it is done, if these rows are the prompt's last."""


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
    """Per cache group, int64 [T]: where each row's key and value are written: page * page_tokens + offset. In a group
    of whole blocks: where the tokens of those that become whole in this step are."""
    sealed: tuple[Tensor, ...]
    """Per cache group, int64: the pages that these are read from; of other groups none."""
    reads: tuple[Reads, ...]
    """Per cache group: the stored positions that each span's rows may read."""
    folds: tuple[tuple[Fold, ...], ...]
    """Per cache group: in one of records, those that are made in this step, in order of position."""
    rows_R: Tensor
    """Rows whose logits are sampled, int64, span after span."""
    scored: tuple[Scored, ...] = ()
    """Rows whose next token is known already and whose log-probability was asked for (prompt_logprobs)."""
    mix: Mix | None = None
    """Rows that run with an adapter; None if all are the base model's."""
    pooled: tuple[Pooled, ...] = ()
    """Rows whose hidden states are pooled."""
    segments: tuple[list[Segment], ...] = ()
    """Per cache group, with a position scheme that has chunks, if some row is beyond the first: what is read of the
    chunk before a row's own, and of all before that one. `reads` holds the own chunk then."""
    beyond: tuple[int, ...] = ()
    """Per span: how far its first row is beyond its prompt's last token; 0 or less in the prompt."""
    written: tuple[Tensor, ...] = ()
    """Per cache group, int64: which row is written to each slot. Empty where every row is written once, in order: where
    no draft is a tree."""
    selecting: Mapping[int, Selecting] = field(default_factory=dict)
    """Of each cache group that has a selector: what it is asked."""
    present: tuple[Present, ...] = ()
    """Per span: which tokens of its sequence each layer has. Empty where each has all."""
    returned: Tensor | None = None
    """Rows, int64, that see themselves beside what they read: where they lie is not among that. None: no row does."""


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
    hidden_sum: HiddenSum | None = None
    """Of a request with pooling."""
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
    embedding: bytes = b""
    """Of a request with pooling, once: float32, little-endian."""
    dropped: int = 0
    """How many tokens of the prompt a shrinker left out."""
