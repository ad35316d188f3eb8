"""The page at `/`, and what it draws: the engine after its last steps."""

from __future__ import annotations

import collections
import time
from importlib import resources
from typing import Any

import msgspec
from fastapi import Request, Response

from headrace.server.client import EngineClient
from headrace.server.messages import Stepped, View

STEPS = 100
_FILES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
PATHS = {"/": "index.html", **{f"/page/{name}": name for name in _FILES}}
"""Where the page's files are served."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Live:
    """Keeps the last steps."""

    def __init__(self) -> None:
        self._steps: collections.deque[View] = collections.deque(maxlen=STEPS)

    def step(self, step: Stepped) -> None:
        """The engine has run a batch."""
        if step.view.spans:
            self._steps.append(step.view)

    def answer(self, client: EngineClient) -> Response:
        """What /live says."""
        steps: list[dict[str, Any]] = [
            {"step": v.stats.counters.steps, "spans": v.spans} for v in self._steps
        ]
        facts = client.ready.facts if client.ready is not None else client.why
        body = {
            "at": time.monotonic(),
            "facts": facts,
            "stats": client.view and client.view.stats,
            "steps": steps,
        }
        return Response(msgspec.json.encode(body), media_type="application/json")


async def page(request: Request) -> Response:
    """The file of the page that the path names."""
    name = PATHS[request.url.path]
    data = resources.files("headrace.server").joinpath("page", name).read_bytes()
    return Response(data, headers=_HEADERS, media_type=_FILES[name])
