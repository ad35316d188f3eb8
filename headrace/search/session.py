r"""Session: one prompt, and branches that grow from it in one engine, all of a call at once.

    root --grow--> step --grow--> step ...      a branch listed twice grows twice, each its own way
      \--grow--> step ...                       what branches have in common is stored once: the prefix cache finds it

Every call's draws have seeds of their own, counted from the session's: the same calls give the same branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.llm import LLM
from headrace.params import SamplingParams
from headrace.sample.draw import child_seed
from headrace.search.answer import Branch, Cost
from headrace.text.reply import Sample


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

    def grow(self, branches: Sequence[Branch], *, whole: bool = False) -> list[Branch]:
        """Each branch by one step; whole: to its end. Those that are done stay as they are.

        Where the budget is not enough for all, the first ones get what there is, and the others stay as they are.
        """
        room = self._llm.engine.context - len(self._prompt)
        asked: list[tuple[int, SamplingParams]] = []
        left = self.left
        for place, branch in enumerate(branches):
            most = room - len(branch.tokens) if whole else self._step_tokens
            most = int(min(most, room - len(branch.tokens), left))
            if not branch.done and most > 0:
                asked.append((place, self._params(most, whole)))
                left -= most
        prompts = [[*self._prompt, *branches[place].tokens] for place, _ in asked]
        outputs = (
            self._llm.generate(prompts, [params for _, params in asked], progress=False) if asked else []
        )
        grown = list(branches)
        for (place, _), output in zip(asked, outputs, strict=True):
            sample = output.samples[0]
            self.cost.new_tokens += len(sample.token_ids)
            self.cost.prompt_tokens += output.usage.prompt_tokens
            self.cost.cached_tokens += output.usage.cached_tokens
            grown[place] = self._longer(branches[place], sample)
        return grown

    def _params(self, most: int, whole: bool) -> SamplingParams:
        self._calls += 1
        stops = [self._stop] if whole else [self._delimiter]
        return SamplingParams(
            temperature=self._temperature,
            seed=child_seed(self._seed, self._calls),
            max_tokens=most,
            stop=tuple(filter(None, stops)),
            logprobs=0,
        )

    def _longer(self, branch: Branch, sample: Sample) -> Branch:
        whole = (*branch.tokens, *sample.token_ids)
        text = self._llm.tokenizer.decode(list(whole))
        own_end = bool(whole) and whole[-1] in self._llm.engine.architecture.eos
        ended = own_end or bool(self._stop and self._stop in text)
        if self._stop:
            text = text.split(self._stop, 1)[0] if self._stop in text else text
        full = len(self._prompt) + len(whole) >= self._llm.engine.context
        return Branch(
            tokens=whole,
            text=text,
            steps=branch.steps + 1,
            logprob=branch.logprob + math.fsum(item.logprob for item in sample.logprobs),
            done=ended or full or branch.steps + 1 >= self._max_steps,
            ended=ended,
        )
