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
from headrace.sample.ending import Ending
from headrace.sample.vocabulary import Vocabulary
from headrace.slots import Card

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

    def start(self, vocabulary: Vocabulary) -> _Compiler:
        return _Compiler(vocabulary, self.whitespace)


class _Compiler:
    def __init__(self, vocabulary: Vocabulary, whitespace: int) -> None:
        import llguidance

        self._lib = llguidance
        self._vocabulary, self._whitespace = vocabulary, whitespace
        wrapper = llguidance.TokenizerWrapper(_Tokenizer(vocabulary))
        self._tokenizer = llguidance.LLTokenizer(
            wrapper, n_vocab=vocabulary.size, eos_token=list(vocabulary.eos)
        )
        self._limits = llguidance.LLParserLimits(**_LIMITS)

    def compile(self, grammar: Grammar) -> _Matcher:
        made = self._lib.LLMatcher(self._tokenizer, self._source(grammar), log_level=0, limits=self._limits)
        if made.is_error():
            raise ConfigError(f"{grammar.kind}: {_first_line(made.get_error())}")
        return _Matcher(made, self._vocabulary)

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
        options: Any = {  # overrides what a schema says of itself in "x-guidance"
            "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{0,{self._whitespace}}}",
            "item_separator": ",",
            "key_separator": ":",
            "lenient": False,
            "coerce_one_of": False,
        }
        try:
            return str(self._lib.LLMatcher.grammar_from_json_schema(schema, overrides=options))
        except ValueError as error:
            raise ConfigError(f"json_schema: {_first_line(str(error))}") from None


class _Matcher(Ending):
    def __init__(self, inner: Any, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._inner = inner

    def _mask(self) -> bytes:
        bits: bytes = self._inner.compute_bitmask()
        self._check()
        return bits

    def _forced(self) -> tuple[int, ...]:
        return tuple(self._inner.compute_ff_tokens())

    def _take(self, token: int) -> None:
        self._inner.consume_token(token)
        self._check()

    def _undo(self, count: int) -> None:
        self._inner.rollback(count)
        self._check()

    def _twin(self) -> _Matcher:
        return _Matcher(self._inner.deep_copy(), self._vocabulary)

    def _check(self) -> None:
        if self._inner.is_error():
            raise ConfigError(f"the grammar cannot go on: {_first_line(self._inner.get_error())}")


class _Tokenizer:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.bos_token_id, self.eos_token_id = vocabulary.bos, vocabulary.eos[0]
        self.tokens, self.special_token_ids = vocabulary.tokens, sorted(vocabulary.special)

    def __call__(self, data: bytes | str) -> list[int]:
        return self._vocabulary.encode(data.encode() if isinstance(data, str) else data)


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300]
