"""What comes back for one request: token deltas put together into text, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.params import SamplingParams
from headrace.text.detokenizer import Detokenizer
from headrace.text.tokenizer import Tokenizer
from headrace.types import Delta, FinishReason, Logprob


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added to one sample, as text. The texts of a sample's chunks joined are its text."""

    index: int
    """Which of the request's n samples."""
    text: str
    """May be empty while a character or a stop string is incomplete."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Set on the last chunk of the sample."""
    stop: str | None = None
    """The stop string that ended the sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished continuation of a prompt."""

    text: str
    """Without the stop string or the end token."""
    token_ids: tuple[int, ...]
    """All tokens that were generated, the end token included."""
    logprobs: tuple[Logprob, ...]
    """One per token if they were asked for."""
    finish_reason: FinishReason | None
    stop: str | None = None
    """The stop string that ended it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out, over all samples."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt: those that the prefix cache had."""
    dropped_tokens: int = 0
    """Of the prompt: those that a shrinker left out, and only the first layers have read."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds on the clock of whoever drives the engine."""

    asked: float
    first: float
    """When the first token came; `last`, if none has."""
    last: float
    """When the last one did."""


@dataclass(frozen=True, slots=True)
class Output:
    """All that one request gave."""

    prompt: str | None
    """The text that was asked; None if token ids were."""
    prompt_token_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    prompt_logprobs: tuple[Logprob, ...]
    """For the second token of the prompt to the last, if they were asked for."""
    usage: Usage
    ttft_s: float
    """Seconds from the request to its first token, waiting included."""
    decode_tok_s: float | None
    """Tokens per second after the first of each sample; None where nobody generated two."""
    embedding: bytes = b""
    """Of a request with pooling: float32, little-endian."""

    @property
    def text(self) -> str:
        """Of the first sample."""
        return self.samples[0].text


class Reply:
    """Gathers the deltas of one request. Mutates itself only; knows no engine: the caller carries out its stops."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None,
        at: float,
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`at`: when the request was made, in seconds on any clock; `take` is told the time on the same one.

        With `skip_special`, tokens that steer the model are not part of the text, except those in `shown`.
        """
        self.prompt = prompt
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.params = params
        self._prompt_logprobs: list[Logprob] = []
        self._embedding = b""
        self._cached, self._dropped = 0, 0
        self._began = at
        self._first: float | None = None
        self._last = at
        self._drafts = [_Draft(tokenizer, params, skip_special, shown) for _ in range(params.n)]

    @property
    def done(self) -> bool:
        """Every sample is finished."""
        return all(draft.finish_reason for draft in self._drafts)

    def take(self, delta: Delta, at: float) -> Chunk | None:
        """Adds a delta; None if its sample had already ended, at a stop string that the engine did not know of.

        If the chunk's finish_reason is set and the delta's is not, the engine still has to be told to stop.
        """
        self._prompt_logprobs += delta.prompt_logprobs
        self._embedding += delta.embedding
        self._dropped = max(self._dropped, delta.dropped)
        draft = self._drafts[delta.index]
        if draft.finish_reason is not None:
            return None
        if delta.tokens:
            self._first = at if self._first is None else self._first
            self._last = at
            self._cached = max(self._cached, delta.cached) if delta.index == 0 else self._cached
        return draft.take(delta)

    @property
    def usage(self) -> Usage:
        """So far."""
        answer = sum(map(len, self._drafts))
        return Usage(len(self.prompt_token_ids), answer, self._cached, self._dropped)

    @property
    def times(self) -> Times:
        """So far."""
        return Times(self._began, self._last if self._first is None else self._first, self._last)

    def output(self) -> Output:
        """All that has come so far."""
        samples = tuple(draft.sample() for draft in self._drafts)
        later = sum(max(len(sample.token_ids) - 1, 0) for sample in samples)
        times = self.times
        return Output(
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            samples=samples,
            prompt_logprobs=tuple(self._prompt_logprobs),
            usage=self.usage,
            ttft_s=times.first - times.asked,
            decode_tok_s=later / (times.last - times.first) if later and times.last > times.first else None,
            embedding=self._embedding,
        )


class _Draft:
    """One sample while it grows."""

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, skip_special: bool, shown: frozenset[int]
    ) -> None:
        self._detokenizer = Detokenizer(
            tokenizer, params.stop, min_tokens=params.min_tokens, skip_special=skip_special, shown=shown
        )
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[Logprob] = []
        self.finish_reason: FinishReason | None = None

    def take(self, delta: Delta) -> Chunk:
        # A sample that the engine ended with "stop" ends with its stop token, which is not text.
        shown = delta.tokens[:-1] if delta.finish_reason == "stop" else delta.tokens
        before = self._detokenizer.num_tokens
        text = self._detokenizer.push(shown)
        self.finish_reason = delta.finish_reason
        if delta.finish_reason is not None:
            text += self._detokenizer.finish()
        kept = len(delta.tokens)
        if self._detokenizer.stopped is not None:
            self.finish_reason = "stop"
            kept = self._detokenizer.num_tokens - before
        chunk = Chunk(
            delta.index,
            text,
            delta.tokens[:kept],
            delta.logprobs[:kept],
            self.finish_reason,
            self._detokenizer.stopped,
        )
        self._texts.append(chunk.text)
        self._tokens += chunk.token_ids
        self._logprobs += chunk.logprobs
        return chunk

    def sample(self) -> Sample:
        stop = self._detokenizer.stopped
        return Sample(
            "".join(self._texts), tuple(self._tokens), tuple(self._logprobs), self.finish_reason, stop
        )

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self._tokens)
