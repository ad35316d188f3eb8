"""Tokens to text while they come, for one sample: whole characters only, stop strings never shown.

tokens  -> bytes -> characters -> [ emitted | held: may begin a stop string ]
               `- up to 3 bytes of an unfinished character wait here
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from headrace.text.tokenizer import Tokenizer

_make_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns the tokens of one sample into text piece by piece.

    The pieces joined equal `tokenizer.decode(all tokens, start=start)`, cut before the stop string that *ends*
    first (the longest, if several end there): so it does not matter how the text is cut into tokens, or tokens
    into steps. The cost per character does not grow with the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        start: bool = False,
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`stop` strings count from the token after the first `min_tokens`. `start`: the tokens begin a text.

        With `skip_special`, tokens that steer the model are not shown, except those in `shown`.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special - shown if skip_special else frozenset()
        self._decoder = _make_decoder("replace")
        self._lead = tokenizer.lead if start else b""
        self._matchers = [_Matcher(text) for text in stop]
        self._min_tokens = min_tokens
        self._held = ""
        self.num_tokens = 0
        """Tokens taken; those after a completed stop string are not."""
        self.stopped: str | None = None
        """The stop string that was found."""

    def push(self, tokens: Iterable[int]) -> str:
        """Takes tokens and returns the text that is now certain; nothing once a stop string was found."""
        pieces = []
        for token in tokens:
            if self.stopped is not None:
                break
            self.num_tokens += 1
            pieces.append(self._show(self._decoder.decode(self._bytes_of(token))))
        return "".join(pieces)

    def finish(self) -> str:
        """The rest of the text: what was held, with an unfinished character as U+FFFD. The last call."""
        if self.stopped is not None:
            return ""
        shown = self._show(self._decoder.decode(b"", True))
        if self.stopped is None:
            shown, self._held = shown + self._held, ""
        return shown

    def _bytes_of(self, token: int) -> bytes:
        data = b"" if token in self._skipped else self._tokenizer.bytes_of(token)
        if self._lead and data:
            data, self._lead = data.removeprefix(self._lead), b""
        return data

    def _show(self, text: str) -> str:
        if not text or not self._matchers or self.num_tokens <= self._min_tokens:
            return text
        held = 0
        for i, char in enumerate(text):
            held = max([matcher.feed(char) for matcher in self._matchers])
            found = [matcher.pattern for matcher in self._matchers if matcher.complete]
            if found:
                self.stopped = max(found, key=len)
                known = self._held + text[: i + 1]
                self._held = ""
                return known[: len(known) - len(self.stopped)]
        known = self._held + text
        self._held = known[len(known) - held :]
        return known[: len(known) - held]


class _Matcher:
    """Knuth-Morris-Pratt: how much of the front of `pattern` ends at the last character."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._length = 0
        # _border[k]: the longest front of pattern[:k] that is also its end, and shorter than k.
        self._border = [0] * (len(pattern) + 1)
        for k in range(1, len(pattern)):
            self._border[k + 1] = self._advance(self._border[k], pattern[k])

    @property
    def complete(self) -> bool:
        return self._length == len(self.pattern)

    def feed(self, char: str) -> int:
        """Takes one character and returns the matched length. Must not be called once complete."""
        self._length = self._advance(self._length, char)
        return self._length

    def _advance(self, length: int, char: str) -> int:
        while length and self.pattern[length] != char:
            length = self._border[length]
        return length + 1 if self.pattern[length] == char else 0
