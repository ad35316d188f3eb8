"""Vocabulary: a tokenizer's entries as a grammar sees them, and the tokens that a known text usually has."""

from __future__ import annotations

import bisect
from functools import cached_property

from headrace.text.tokenizer import Tokenizer


class Vocabulary:
    """Bytes of every token of a model with `size` logits; at least one end token."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.size, self.eos, self.bos = size, eos, tokenizer.bos
        self.special = tokenizer.special | set(eos)
        """Tokens that are not text."""
        self.tokens = [tokenizer.bytes_of(i) if i < tokenizer.size else b"" for i in range(size)]

    def encode(self, text: bytes) -> list[int]:
        """The tokens that a text usually has."""
        return self._tokenizer.encode_bytes(text)

    def mask(self, *allowed: int) -> bytes:
        """One bit per token, lowest first, filled up to whole 32-bit words."""
        bits = bytearray(4 * -(-self.size // 32))
        for token in allowed:
            bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def usual(self, text: bytes) -> tuple[int, ...]:
        """The tokens of a text that goes on after `text`: those that no longer token could reach beyond."""
        kept: list[int] = []
        for token in self.encode(text):
            if self._goes_on(text):
                break
            kept.append(token)
            text = text[len(self.tokens[token]) :]
        return tuple(kept)

    def _goes_on(self, text: bytes) -> bool:
        """Whether a token starts with `text` and has more."""
        place = bisect.bisect_right(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted({data for i, data in enumerate(self.tokens) if i not in self.special})
