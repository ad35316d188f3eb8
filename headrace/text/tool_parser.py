"""Finds calls of tools in what a model writes, while it writes.

A call is one from the moment that its name, which must be a tool's, is known and its arguments begin; until then its
text is held back, and given back as content if it turns out to be none. What stands in a broken call is content as a
whole: if a stream has told the front of it already, Broken says that it is withdrawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.text.scanner import BLANKS, Scanner, Unexpected, Wait
from headrace.text.tool_formats import Format
from headrace.text.tool_values import as_json

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A call begins."""

    index: int
    """Counts the calls of an answer, broken ones included."""
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The arguments of a call are complete."""

    index: int


@dataclass(frozen=True, slots=True)
class Broken:
    """What was told of this call is withdrawn; the text of it follows as content."""

    index: int


Event = Content | Begun | Arguments | Ended | Broken


class ToolParser:
    """The text of one answer to events. How the text is cut into pieces does not matter to what they add up to."""

    def __init__(self, form: Format, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        """schemas: of the arguments of each tool that may be called, by its name."""
        self._form, self._schemas = form, schemas
        self._scan = Scanner()
        self._events: list[Event] = []
        self._blanks: list[str] = []  # at the end of the content so far: dropped if only calls follow
        self._beside = False  # the last thing told is a call
        self._index = -1
        self._open = False  # a call has begun and not ended
        self._cut = False
        self._work = self._answer()

    def feed(self, text: str) -> list[Event]:
        """What is certain now."""
        self._scan.feed(text)
        return self._go_on()

    def finish(self, *, cut: bool) -> list[Event]:
        """The rest. `cut`: the text ends because there was no more room, so an unfinished call is no broken one."""
        self._scan.ended, self._cut = True, cut
        events = self._go_on()
        if self._blanks and not self._beside:
            events.append(Content("".join(self._blanks)))
        return events

    def _go_on(self) -> list[Event]:
        next(self._work, None)
        self._tell_arguments()
        events, self._events = self._events, []
        return events

    # ---- the answer ----

    def _answer(self) -> Wait[None]:
        first = True
        while (yield from self._find(first)):
            first = False
            self._scan.taken.clear()
            try:
                yield from self._calls()
            except Unexpected:
                self._give_back()

    def _find(self, first: bool) -> Wait[bool]:
        """Passes content on up to where calls may begin; False at the end of the text."""
        scan, form = self._scan, self._form
        if not form.anywhere and first:
            self._blanks.append((yield from scan.blanks()))
            for trigger in form.triggers:
                if (yield from scan.sees(trigger)):
                    return True
        while (yield from scan.peek()):
            [trigger] = form.triggers if form.anywhere else [""]
            self._content(scan.until(trigger) if trigger else scan.rest())
            if trigger and (yield from scan.sees(trigger)):
                return True
        return False

    def _calls(self) -> Wait[None]:
        scan, form = self._scan, self._form
        if not form.bare or (yield from scan.sees(form.open)):
            yield from scan.expect(form.open)
        more = True
        while more:
            yield from scan.expect(form.before)
            yield from self._call()
            yield from self._maybe(form.after)
            if form.between.strip():
                more = yield from self._maybe(form.between, keep=True)
            else:  # the next one's own mark says that there is one; without `open`, it is found as the first one was
                yield from scan.blanks()
                more = bool(form.open) and (yield from scan.sees(form.before.split()[0]))
        yield from self._maybe(form.close)
        self._content("".join(scan.taken))

    def _maybe(self, literal: str, *, keep: bool = False) -> Wait[bool]:
        """Reads `literal` as far as it is there: models forget to close. `keep`: it is content if no call follows."""
        scan = self._scan
        for word in literal.split():
            yield from scan.blanks()
            if not (yield from scan.sees(word)):
                return False
            scan.take(len(word))
            if not keep:
                scan.taken.clear()
        return True

    def _content(self, text: str) -> None:
        body = text.rstrip(BLANKS)
        if body:
            self._events.append(Content("".join(self._blanks) + body))
            self._blanks, self._beside = [], False
        self._blanks.append(text[len(body) :])

    def _give_back(self) -> None:
        self._scan.hidden = False
        if self._open:
            self._tell_arguments()
            self._open, self._scan.copy = False, None
            self._beside = self._cut and self._scan.ended
            if self._beside:
                return
            self._events.append(Broken(self._index))
        self._content("".join(self._scan.taken))

    # ---- a call ----

    def _call(self) -> Wait[None]:
        if self._form.body == "object":
            yield from self._object()
            return
        yield from self._scan.blanks()
        name = yield from self._scan.run(_NAME)
        if name not in self._schemas:
            raise Unexpected
        if self._form.body == "named":
            yield from self._scan.expect(self._form.middle)
            yield from self._scan.blanks()
            yield from self._whole(name)
        elif self._form.body == "python":
            yield from self._python(name)
        else:
            yield from self._tagged(name)
        self._end()

    def _object(self) -> Wait[None]:
        """{"name": "f", "arguments": {...}} in any order, with anything else beside them."""
        scan = self._scan
        name, arguments = "", ""
        yield from scan.expect("{")
        more = True
        while more:
            yield from scan.blanks()
            key = yield from scan.string()
            yield from scan.expect(":")
            yield from scan.blanks()
            if key == "name":
                known, name = name, (yield from scan.string())
                if known or name not in self._schemas:
                    raise Unexpected
                if arguments:
                    self._begin(name, arguments)
                    self._tell_arguments()
                    scan.copy = None
            elif key in self._form.keys:
                if arguments:
                    raise Unexpected
                arguments = yield from self._whole(name)
            else:
                yield from scan.value()
            yield from scan.blanks()
            more = yield from scan.sees(",")
            yield from scan.expect("," if more else "}")
        if not (name and arguments):
            raise Unexpected
        self._end()

    def _whole(self, name: str) -> Wait[str]:
        """Arguments as a JSON object; told while they come if the name is known."""
        scan = self._scan
        if (yield from scan.peek()) != "{":
            raise Unexpected
        if name:
            self._begin(name)
        begin = len(scan.taken)
        yield from scan.value()
        self._tell_arguments()
        scan.copy = None
        return "".join(scan.taken[begin:])

    def _python(self, name: str) -> Wait[None]:
        """f(a=1, b="x"): the arguments become a JSON object. Positional ones are no call of a tool."""
        scan = self._scan
        yield from scan.expect("(")
        self._begin(name, "{")
        assert scan.copy is not None
        seen: set[str] = set()
        yield from scan.blanks(shown=False)
        while (yield from scan.peek()) != ")":
            scan.hidden = True
            if seen:
                yield from scan.expect(",")
                yield from scan.blanks()
            key = yield from scan.run(_NAME)
            yield from scan.expect("=")
            if not key or key in seen:
                raise Unexpected
            scan.hidden = False
            scan.copy.append(f'{", " if seen else ""}"{key}": ')
            seen.add(key)
            yield from scan.value(python=True)
            yield from scan.blanks(shown=False)
        scan.take(1, "}")

    def _tagged(self, name: str) -> Wait[None]:
        """Arguments between marks: each becomes a member of a JSON object once all of it is there."""
        scan, form = self._scan, self._form
        properties = self._schemas[name].get("properties", {})
        yield from scan.expect(form.middle)
        self._begin(name, "{")
        assert scan.copy is not None
        scan.hidden = True
        seen: set[str] = set()
        yield from scan.blanks()
        while (yield from scan.sees(form.key[0])):
            scan.take(len(form.key[0]))
            key = (yield from scan.passage(form.key[1])).strip()
            yield from scan.expect(form.value[0])
            text = yield from scan.passage(form.value[1])
            if key in seen:
                raise Unexpected
            scan.copy.append(f"{', ' if seen else ''}{json.dumps(key)}: {as_json(text, properties.get(key))}")
            seen.add(key)
            yield from scan.blanks()
        if not (yield from scan.sees(form.after.split()[0])):
            raise Unexpected
        scan.copy.append("}")
        scan.hidden = False

    def _begin(self, name: str, arguments: str = "") -> None:
        self._index += 1
        self._open = True
        self._events.append(Begun(self._index, name))
        self._scan.copy = [arguments] if arguments else []

    def _tell_arguments(self) -> None:
        if self._open and self._scan.copy:
            self._events.append(Arguments(self._index, "".join(self._scan.copy)))
            self._scan.copy.clear()

    def _end(self) -> None:
        self._tell_arguments()
        self._scan.copy = None
        self._events.append(Ended(self._index))
        self._open, self._beside = False, True
        self._scan.taken.clear()


@dataclass
class ToolCall:
    """A call, as far as it is known."""

    name: str
    arguments: str = ""
    """JSON text."""
    complete: bool = False


class Parsed:
    """What the events of an answer add up to."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._calls: dict[int, ToolCall] = {}

    def take(self, events: Iterable[Event]) -> None:
        """The next events."""
        for event in events:
            match event:
                case Content(text):
                    self._content.append(text)
                case Begun(index, name):
                    self._calls[index] = ToolCall(name)
                case Arguments(index, text):
                    self._calls[index].arguments += text
                case Ended(index):
                    self._calls[index].complete = True
                case Broken(index):
                    del self._calls[index]

    @property
    def content(self) -> str:
        """All that is no call."""
        return "".join(self._content)

    @property
    def calls(self) -> list[ToolCall]:
        """All calls but broken ones."""
        return list(self._calls.values())

    @property
    def asks(self) -> bool:
        """Whether the answer calls tools, all of them with complete arguments."""
        return bool(self._calls) and all(call.complete for call in self._calls.values())
