"""The page at `/`, and what it draws: the engine after its last steps."""

from __future__ import annotations

import collections
import time
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from fastapi import Request, Response

from headrace.server.client import EngineClient
from headrace.server.messages import Stepped, View

STEPS = 100
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_FILES = ("index.html", "style.css", "icon.svg", "server.js", "chat.js", "engine.js", "plot.js")
PATHS = {"/": "index.html", **{f"/page/{name}": name for name in _FILES}}
"""Where the page's files are served."""
_HEADERS = {
    # Only this server's own files and answers; a text that is set as HTML is refused by the browser, too.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Live:
    """Keeps the last steps."""

    def __init__(self) -> None:
        self._steps: collections.deque[View] = collections.deque(maxlen=STEPS)

    def step(self, step: Stepped) -> None:
        """The engine has run a batch."""
        if self._steps and step.view.stats.counters.steps < self._steps[-1].stats.counters.steps:
            self._steps.clear()  # another engine, whose sequences have the same numbers
        if step.view.spans:
            self._steps.append(step.view)

    def answer(self, client: EngineClient) -> Response:
        """What /live says."""
        steps: list[dict[str, Any]] = [
            {"step": v.stats.counters.steps, "seconds": v.seconds, "spans": v.spans} for v in self._steps
        ]
        body = {
            "at": time.monotonic(),
            "state": client.state.value,
            "why": client.why,
            "facts": client.ready.facts if client.ready is not None else "",
            "stats": client.view and client.view.stats,
            "steps": steps,
        }
        return Response(msgspec.json.encode(body), media_type="application/json")


async def page(request: Request) -> Response:
    """The file of the page that the path names."""
    name = PATHS[request.url.path]
    data = resources.files("headrace.server").joinpath("page", name).read_bytes()
    return Response(data, headers=_HEADERS, media_type=TYPES[Path(name).suffix])
