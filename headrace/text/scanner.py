"""Reads JSON, and Python's literals as JSON, from text that comes in pieces.

Every method is a generator that is suspended where the text ends for now, so a reader is written as if all of it were
there, and how it was cut cannot matter. Each character is looked at a fixed number of times, nothing is recursive and
nothing is evaluated: the text is a model's, which a stranger may have told what to write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
"""Yields while it needs more text; returns a T."""

MAX_DEPTH = 64
"""Deepest nesting that is read as JSON."""
BLANKS = " \t\r\n"
_BLANK = re.compile(r"[ \t\r\n]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_PLAIN_PYTHON = {quote: re.compile(rf"[^{quote}\\\r\n]+") for quote in ("'", '"')}
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_JSON_WORDS = {word: word for word in ("true", "false", "null")}
_PYTHON_WORDS = {**_JSON_WORDS, "True": "true", "False": "false", "None": "null"}
_CLOSERS = {"{": "}", "[": "]"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"}
_PYTHON_ESCAPES = {**_ESCAPES, "\\": "\\", "/": "/", "'": "'", '"': '"'}
_HEX = frozenset("0123456789abcdefABCDEF")


class Unexpected(Exception):
    """The text goes on in a way that it cannot, or ends too early."""


class Scanner:
    """A place in a text that grows. What is read is kept in `taken` until somebody clears it."""

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self.ended = False
        """No more text will come."""
        self.taken: list[str] = []
        """What was read, as it was written."""
        self.copy: list[str] | None = None
        """If set, gets what is read too: JSON as it was written, Python's literals as JSON."""
        self.hidden = False
        """What is read now is not copied."""

    def feed(self, text: str) -> None:
        """More text."""
        self._text, self._at = self._text[self._at :] + text, 0

    def peek(self) -> Wait[str]:
        """The next character; empty at the end."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def sees(self, literal: str) -> Wait[bool]:
        """Whether the text goes on with `literal`."""
        while not self._text.startswith(literal, self._at):
            if self.ended or not literal.startswith(self._text[self._at : self._at + len(literal)]):
                return False
            yield
        return True

    def until(self, literal: str) -> str:
        """What is there before `literal`, or before what may be the front of it; all at the end. Not kept."""
        stop = self._text.find(literal, self._at)
        if stop < 0:
            stop = len(self._text)
            first = stop if self.ended else max(stop - len(literal) + 1, self._at)
            stop = next((i for i in range(first, stop) if literal.startswith(self._text[i:])), stop)
        found, self._at = self._text[self._at : stop], stop
        return found

    def passage(self, literal: str) -> Wait[str]:
        """All before `literal`, which is read with it. Raises Unexpected if it never comes."""
        pieces = []
        while True:
            pieces.append(self.until(literal))
            self.taken.append(pieces[-1])
            if (yield from self.sees(literal)):
                self.take(len(literal))
                return "".join(pieces)
            if not (yield from self.peek()):
                raise Unexpected
            pieces.append(self.take(1))

    def rest(self) -> str:
        """All that is there. Not kept."""
        found, self._at = self._text[self._at :], len(self._text)
        return found

    def take(self, count: int, shown: str | None = None) -> str:
        """The next characters, which are there. `shown`: what is copied in their place."""
        found = self._text[self._at : self._at + count]
        self._at += count
        self.taken.append(found)
        if self.copy is not None and not self.hidden:
            self.copy.append(found if shown is None else shown)
        return found

    def expect(self, literal: str) -> Wait[None]:
        """Reads `literal`, with any blanks before it and in place of blanks in it. Raises Unexpected."""
        for word in literal.split():
            yield from self.blanks()
            if not (yield from self.sees(word)):
                raise Unexpected
            self.take(len(word))

    def run(self, pattern: re.Pattern[str]) -> Wait[str]:
        """All characters that `pattern`, one or more of a class, matches."""
        pieces = []
        while (yield from self.peek()) and (found := pattern.match(self._text, self._at)):
            pieces.append(self.take(found.end() - self._at))
        return "".join(pieces)

    def blanks(self, *, shown: bool = True) -> Wait[str]:
        """White space."""
        hidden, self.hidden = self.hidden, self.hidden or not shown
        found = yield from self.run(_BLANK)
        self.hidden = hidden
        return found

    def string(self) -> Wait[str]:
        """A JSON string; what it says. Raises Unexpected."""
        begin = len(self.taken)
        if (yield from self.peek()) != '"':
            raise Unexpected
        self.take(1)
        while True:
            yield from self.run(_PLAIN)
            char = yield from self.peek()
            if char not in ('"', "\\"):
                raise Unexpected
            self.take(1)
            if char == '"':
                return str(json.loads("".join(self.taken[begin:])))
            kind = yield from self.peek()
            if kind not in ('"', "\\", "/", "b", "f", "n", "r", "t", "u"):
                raise Unexpected
            self.take(1)
            if kind == "u":
                yield from self._hex(4)

    def value(self, *, python: bool = False) -> Wait[None]:
        """One value of any kind, JSON's or Python's. Raises Unexpected."""
        open_: list[str] = []  # closers of what is open, innermost last
        while True:
            yield from self.blanks(shown=not python)
            char = yield from self.peek()
            if char in _CLOSERS:
                self.take(1)
                open_.append(_CLOSERS[char])
                if len(open_) > MAX_DEPTH:
                    raise Unexpected
                yield from self.blanks(shown=not python)
                if (yield from self.peek()) != open_[-1]:
                    yield from self._key(open_[-1], python)
                    continue
            else:
                yield from self._scalar(char, python)
            if not (yield from self._next(open_, python)):
                return

    def _next(self, open_: list[str], python: bool) -> Wait[bool]:
        """After a value: closes what ends here. Whether another value follows."""
        while open_:
            yield from self.blanks(shown=not python)
            char = yield from self.peek()
            if char == ",":
                self.take(1)
                yield from self.blanks(shown=not python)
                yield from self._key(open_[-1], python)
                return True
            if char != open_[-1]:
                raise Unexpected
            self.take(1)
            open_.pop()
        return False

    def _key(self, closer: str, python: bool) -> Wait[None]:
        """What stands before a value inside { }."""
        if closer == "}":
            yield from self._text_value((yield from self.peek()), python)
            yield from self.blanks(shown=not python)
            yield from self.expect(":")

    def _scalar(self, char: str, python: bool) -> Wait[None]:
        if char in ('"', "'"):
            yield from self._text_value(char, python)
            return
        hidden, self.hidden = self.hidden, True  # until all of it is known
        word = yield from self.run(_WORD)
        known = (_PYTHON_WORDS if python else _JSON_WORDS).get(word)
        if known is None and not _NUMBER.fullmatch(word):
            raise Unexpected
        self.hidden = hidden
        if self.copy is not None and not hidden:
            self.copy.append(known or word)

    def _text_value(self, char: str, python: bool) -> Wait[None]:
        yield from (self._python_string(char) if python else self.string())

    def _python_string(self, quote: str) -> Wait[None]:
        """A Python string without prefix, in one pair of quotes."""
        if quote not in _PLAIN_PYTHON:
            raise Unexpected
        self.take(1, '"')
        while True:
            while (yield from self.peek()) and (found := _PLAIN_PYTHON[quote].match(self._text, self._at)):
                self.take(len(found[0]), _quoted(found[0]))
            char = yield from self.peek()
            if char == quote:
                self.take(1, '"')
                return
            if char != "\\":
                raise Unexpected
            self.take(1, "")
            kind = yield from self.peek()
            if kind in _PYTHON_ESCAPES:
                self.take(1, _quoted(_PYTHON_ESCAPES[kind]))
            elif kind in ("u", "x"):
                self.take(1, "\\u" if kind == "u" else "\\u00")
                yield from self._hex(4 if kind == "u" else 2)
            else:
                raise Unexpected

    def _hex(self, count: int) -> Wait[None]:
        for _ in range(count):
            if (yield from self.peek()) not in _HEX:
                raise Unexpected
            self.take(1)


def _quoted(text: str) -> str:
    """As inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
