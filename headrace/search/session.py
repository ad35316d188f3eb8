r"""Session: one prompt, and branches that grow from it in one engine, all of a call at once.

    root --grow--> step --grow--> step ...      a branch listed twice grows twice, each its own way
      \--grow--> step ...                       what branches have in common is stored once: the prefix cache finds it

Every branch's draws have seeds of their own, counted from the session's: the same calls give the same branches, alone
or among other sessions. A budget cuts branches short; it never changes what they say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.sample.draw import child_seed
from headrace.search.answer import Branch, Call, Cost, Growth
from headrace.text.reply import Sample


@dataclass
class _Shoot:
    """What one branch grows in one call."""

    branch: Branch
    tokens: tuple[int, ...]
    """The branch's, and those that are new."""
    most: int
    """Tokens that may still be added."""
    stops: tuple[str, ...]
    """Texts that end it."""
    seed: int
    logprobs: list[float] = field(default_factory=list)
    over: bool = False

    @property
    def added(self) -> tuple[int, ...]:
        return self.tokens[len(self.branch.tokens) :]


class Session:
    """Holds the prompt and counts what is spent. The engine is the LLM's; other requests may run in it."""

    def __init__(
        self,
        llm: LLM,
        prompt: str | Sequence[int],
        *,
        delimiter: str = "\n",
        stop: str = "",
        temperature: float = 0.8,
        step_tokens: int = 256,
        max_steps: int = 40,
        budget_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """delimiter: ends a step. stop: ends an answer, beside the end token. budget_tokens: generated in all.

        Raises ConfigError for what no search can use.
        """
        if temperature == 0:
            raise ConfigError("a search at temperature 0 would get the same answer again and again: sample")
        if not delimiter:
            raise ConfigError("delimiter is empty: name the text that ends a step, such as a line break")
        if step_tokens < 1 or max_steps < 1 or (budget_tokens is not None and budget_tokens < 1):
            raise ConfigError("step_tokens, max_steps and budget_tokens must be at least 1")
        self._llm = llm
        self._prompt = tuple(llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        self._delimiter, self._stop = delimiter, stop
        self._temperature, self._seed, self._calls = temperature, seed, 0
        self._step_tokens, self._max_steps = step_tokens, max_steps
        self._budget = budget_tokens
        self.cost = Cost()
        self.root = Branch()

    @property
    def left(self) -> float:
        """Tokens that may still be generated."""
        return math.inf if self._budget is None else self._budget - self.cost.new_tokens

    @property
    def exhausted(self) -> bool:
        return self.left <= 0

    def grow(self, branches: Sequence[Branch], *, whole: bool = False) -> Growth:
        """Each branch by one step; whole: to its end. Those that are done stay as they are.

        A budget that is not enough for all is shared out evenly, and what some leave is shared out again: all of it is
        spent before a branch stops short.
        """
        shoots = {
            place: self._shoot(branch, whole)
            for place, branch in enumerate(branches)
            if not branch.done and len(branch.tokens) < self._room
        }
        growing = list(shoots.values())
        while growing and not self.exhausted:
            asked = [(shoot, most) for shoot, most in self._shared_out(growing) if most > 0]
            outputs = yield Call(
                [[*self._prompt, *shoot.tokens] for shoot, _ in asked],
                [self._params(shoot, most) for shoot, most in asked],
            )
            for (shoot, _), output in zip(asked, outputs, strict=True):
                self.cost.prompt_tokens += output.usage.prompt_tokens
                self.cost.cached_tokens += output.usage.cached_tokens
                self._take(shoot, output.samples[0])
            growing = [shoot for shoot in growing if not shoot.over]
        return [
            self._longer(shoots[place]) if place in shoots else branch
            for place, branch in enumerate(branches)
        ]

    @property
    def _room(self) -> int:
        """Tokens of an answer that the context holds."""
        return self._llm.engine.context - len(self._prompt)

    def _shoot(self, branch: Branch, whole: bool) -> _Shoot:
        self._calls += 1
        room = self._room - len(branch.tokens)
        most = room if whole else min(room, self._step_tokens)
        stops = [self._stop] if whole else [self._delimiter, self._stop]
        texts = tuple(dict.fromkeys(filter(None, stops)))
        return _Shoot(branch, branch.tokens, most, texts, child_seed(self._seed, self._calls))

    def _shared_out(self, growing: Sequence[_Shoot]) -> list[tuple[_Shoot, int]]:
        """Each, and how many tokens it may take now: no more together than are left."""
        if self._budget is None:
            return [(shoot, shoot.most) for shoot in growing]
        share, rest = divmod(int(self.left), len(growing))
        parts = [min(shoot.most, share + (i < rest)) for i, shoot in enumerate(growing)]
        # The engine looks for stops in what it generates now: one that has begun before is waited for here.
        return [
            (shoot, min(part, 1) if self._has_begun_to_stop(shoot) else part)
            for shoot, part in zip(growing, parts, strict=True)
        ]

    def _has_begun_to_stop(self, shoot: _Shoot) -> bool:
        text = self._text(shoot.added)
        return any(text.endswith(stop[:size]) for stop in shoot.stops for size in range(1, len(stop)))

    def _text(self, tokens: Sequence[int]) -> str:
        return self._llm.tokenizer.decode(tokens, start=False)

    def _params(self, shoot: _Shoot, most: int) -> SamplingParams:
        return SamplingParams(
            temperature=self._temperature, seed=shoot.seed, max_tokens=most, stop=shoot.stops, logprobs=0
        )

    def _take(self, shoot: _Shoot, sample: Sample) -> None:
        self.cost.new_tokens += len(sample.token_ids)
        shoot.tokens += sample.token_ids
        shoot.most -= len(sample.token_ids)
        shoot.logprobs += [item.logprob for item in sample.logprobs]
        cut = sample.finish_reason == "length" and shoot.most > 0
        shoot.over = not cut or any(stop in self._text(shoot.added) for stop in shoot.stops)

    def _longer(self, shoot: _Shoot) -> Branch:
        whole, branch = shoot.tokens, shoot.branch
        if whole == branch.tokens:
            return branch
        text = self._text(whole)
        own_end = whole[-1] in self._llm.engine.architecture.eos
        ended = own_end or bool(self._stop and self._stop in text)
        if self._stop:
            text = text.split(self._stop, 1)[0]
        return Branch(
            tokens=whole,
            text=text,
            steps=branch.steps + 1,
            logprob=branch.logprob + math.fsum(shoot.logprobs),
            done=ended or len(whole) >= self._room or branch.steps + 1 >= self._max_steps,
            ended=ended,
        )
