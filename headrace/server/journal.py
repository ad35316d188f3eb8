"""The log of the server: lines for people, or JSON objects, one a line, and never a reason to stop.

A thread writes. When the disk is full, the reader has gone, or it does not keep up, lines are lost and counted; no
request and no step waits for them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from headrace.server.record import Record

MAX_LINES = 10_000
"""Waiting to be written; further ones are lost."""
CLOSE_S = 2.0
"""How long the last lines may take at the end."""
_LEVELS = {"completed": "info", "cancelled": "info", "rejected": "info", "failed": "warning"}


class JsonLines(logging.Formatter):
    """The standard logging as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return json_line(record.levelname.lower(), "log", {"logger": record.name, "message": text})


def json_line(level: str, event: str, fields: Mapping[str, Any]) -> str:
    """One object: when, how grave, what, and the rest."""
    now = time.time()
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    return msgspec.json.encode({"time": at, "level": level, "event": event, **fields}).decode()


class Journal(logging.Handler):
    """Takes events, the ends of requests, and what the standard logging has to say."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        as_json: bool = False,
        requests: bool = False,
        quiet: bool = False,
    ) -> None:
        """write: one line, without its end; may raise OSError. requests: a line for each; without, only for those that
        were cancelled or failed. quiet: no word about what goes as it should, but for requests."""
        super().__init__()
        self.lost = 0
        """Lines that could not be written."""
        self._write, self._as_json, self._requests, self._quiet = write, as_json, requests or as_json, quiet
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def say(self, event: str, text: str, **fields: Any) -> None:
        """Something that the operator may want to know; `fields` are for machines."""
        if not self._quiet:
            self._put("info", event, text, {"message": text, **fields})

    def request(self, record: Record) -> None:
        """A request has ended."""
        amiss = record.call is not None and record.outcome in ("cancelled", "failed")
        if amiss or (self._requests and not record.routine):
            self._put(_LEVELS[record.outcome], "request", record.text(), record.fields())

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the standard logging; with its traceback, if it has one."""
        self._queue(JsonLines().format(record) if self._as_json else self.format(record))

    @contextlib.contextmanager
    def instead_of_stderr(self) -> Iterator[None]:
        """While the block runs, the standard logging comes here; at its end, what waits is written."""
        root = logging.getLogger()
        before, root.handlers = root.handlers, [self]
        try:
            yield
        finally:
            root.handlers = before
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(None)
            self._thread.join(CLOSE_S)

    def _put(self, level: str, event: str, text: str, fields: dict[str, Any]) -> None:
        self._queue(json_line(level, event, fields) if self._as_json else text)

    def _queue(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except (OSError, ValueError):  # ValueError: the stream is closed
                self.lost += 1
