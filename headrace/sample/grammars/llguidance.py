"""Walks an Earley parser over a trie of the vocabulary at each step, so a grammar costs next to nothing to compile.

Paper   https://arxiv.org/abs/2403.06988 (DOMINO, constraints aligned with subwords); https://github.com/guidance-ai/llguidance
Idea    A lexer of derivatives of regular expressions runs ahead of the parser and answers most of the trie alone; parts
        of the vocabulary that most strings allow are precomputed.
Trades  Some tens of microseconds per token and mask, against precomputed automata that take seconds to build.
Differs The library does the work; limits on its fuel and states are ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from headrace.errors import ConfigError
from headrace.params import Grammar
from headrace.slots import Card
from headrace.text.tokenizer import Tokenizer

_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


@dataclass(frozen=True, kw_only=True)
class LlGuidance:
    """Grammars by llguidance."""

    card: ClassVar[Card] = Card(slot="grammar", exact="bits", paper="https://arxiv.org/abs/2403.06988")
    whitespace: int = 16
    """Most spaces and line breaks between two parts of JSON: without a limit a small model may never stop with them."""

    def __post_init__(self) -> None:
        if not 0 <= self.whitespace <= 1000:
            raise ValueError(f"whitespace={self.whitespace} must be between 0 and 1000")

    def start(self, tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> _Compiler:
        return _Compiler(tokenizer, size, eos, self.whitespace)


class _Compiler:
    def __init__(self, tokenizer: Tokenizer, size: int, eos: tuple[int, ...], whitespace: int) -> None:
        import llguidance

        self._lib = llguidance
        self._eos, self._whitespace = eos, whitespace
        vocabulary = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, size, eos))
        self._tokenizer = llguidance.LLTokenizer(vocabulary, n_vocab=size)
        self._limits = llguidance.LLParserLimits(**_LIMITS)

    def compile(self, grammar: Grammar) -> _Matcher:
        made = self._lib.LLMatcher(self._tokenizer, self._source(grammar), log_level=0, limits=self._limits)
        if made.is_error():
            raise ConfigError(f"{grammar.kind}: {_first_line(made.get_error())}")
        return _Matcher(made, self._eos)

    def _source(self, grammar: Grammar) -> str:
        lib = self._lib.LLMatcher
        match grammar.kind:
            case "json_object":
                return self._json('{"type": "object"}')
            case "json_schema":
                return self._json(grammar.text)
            case "regex":
                return str(lib.grammar_from_regex(grammar.text))
            case "choice":
                choices = " | ".join(
                    json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text)
                )
                return str(lib.grammar_from_lark(f"start: {choices}"))
            case "lark":
                return str(lib.grammar_from_lark(grammar.text))

    def _json(self, schema: str) -> str:
        options: Any = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{0,{self._whitespace}}}"}
        try:
            return str(self._lib.LLMatcher.grammar_from_json_schema(schema, defaults=options))
        except ValueError as error:
            raise ConfigError(f"json_schema: {_first_line(str(error))}") from None


class _Matcher:
    def __init__(self, inner: Any, eos: tuple[int, ...]) -> None:
        self._inner, self._eos = inner, eos
        self._ended = 0  # tokens since the text ended: the parser does not see them

    def mask(self) -> bytes:
        if self._ended:
            return b""
        bits: bytes = self._inner.compute_bitmask()
        self._check()
        return bits

    def accept(self, token: int) -> None:
        if self._ended or token in self._eos:
            self._ended += 1
            return
        self._inner.consume_token(token)
        self._check()

    def rollback(self, count: int) -> None:
        beyond = min(count, self._ended)
        self._ended -= beyond
        if count > beyond:
            self._inner.rollback(count - beyond)
            self._check()

    def fork(self) -> _Matcher:
        twin = _Matcher(self._inner.deep_copy(), self._eos)
        twin._ended = self._ended
        return twin

    def forced(self) -> tuple[int, ...]:
        return () if self._ended else tuple(self._inner.compute_ff_tokens())

    def _check(self) -> None:
        if self._inner.is_error():
            raise ConfigError(f"the grammar cannot go on: {_first_line(self._inner.get_error())}")


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos
        self.eos_token_id = eos[0] if eos else tokenizer.eos
        self.tokens = [b"" if i >= tokenizer.size else tokenizer.bytes_of(i) for i in range(size)]
        self.special_token_ids = sorted(tokenizer.special)

    def __call__(self, data: bytes | str) -> list[int]:
        raw = data.encode() if isinstance(data, str) else data
        return self._tokenizer.encode_bytes(raw)


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300]
