"""SamplingParams: what the user wants of the output, each field checked where it is written down.

The first of the seven nouns of headrace/types.py, in a file of its own for its size. Imports nothing of ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

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
MAX_TRACKED = 128
"""Most tokens whose log-probability one position reports because they were asked for by id."""
MAX_GRAMMAR_CHARS = 64 << 10
"""Longest text of a grammar."""

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
    logprob_token_ids: tuple[int, ...] = ()
    """With `logprobs`: report these tokens' log-probabilities as well, after those of the most likely ones."""
    prompt_logprobs: int | None = None
    """The same as `logprobs` for the tokens of the prompt."""
    prompt_logprobs_start: int = 1
    """The first token of the prompt that is scored; what comes before it may come from the prefix cache."""
    grammar: Grammar | None = None
    """Only tokens that keep the output in this form are drawn; it ends where the form is complete."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logprob_token_ids", tuple(self.logprob_token_ids))
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
            most = {"stop_token_ids": MAX_STOPS, "logprob_token_ids": MAX_TRACKED}.get(name, MAX_BIASED)
            if len(ids) > most:
                raise ValueError(f"{name} has {len(ids)} entries; at most {most}")
            wrong = next((t for t in ids if not isinstance(t, int) or isinstance(t, bool) or t < 0), None)
            if wrong is not None:
                raise ValueError(f"{name}: {wrong!r} is not a token id, a whole number of 0 or more")
        if self.logprob_token_ids and self.logprobs is None:
            raise ValueError("logprob_token_ids go with logprobs: set it, 0 for no others")
        if not all(self.bad_words_ids):
            raise ValueError("bad_words_ids: a run of tokens is empty")
        for token, bias in self.logit_bias.items():
            _check_range(f"logit_bias[{token}]", bias, -100, 100)

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Every token id that a field names."""
        runs = tuple(itertools.chain.from_iterable(self.bad_words_ids))
        found = {"stop_token_ids": self.stop_token_ids, "allowed_token_ids": self.allowed_token_ids}
        found["logprob_token_ids"] = self.logprob_token_ids
        return {**found, "logit_bias": tuple(self.logit_bias), "bad_words_ids": runs}


_RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("n", 1, MAX_N), ("temperature", 0, 100), ("top_k", 0, None), ("top_p", 1e-9, 1), ("min_p", 0, 1),
    ("repetition_penalty", 1e-3, 1e3), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2),
    ("seed", -(2**63), 2**63 - 1), ("max_tokens", 1, None), ("min_tokens", 0, None),
    ("logprobs", 0, MAX_LOGPROBS), ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs_start", 1, None),
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
