"""Health: alive is that this process answers; ready is that the engine has run a real step lately.

An engine that has been idle is asked for one token, so a model that loads but cannot compute is not called healthy.
"""

from __future__ import annotations

import asyncio
import itertools
import time

from fastapi import Response

from headrace.params import SamplingParams
from headrace.server.client import State
from headrace.server.errors import ApiError
from headrace.server.service import Service
from headrace.types import Request

FRESH_S = 10.0
"""A step that is not older says that the engine works."""
PROBE_S = 60.0
"""So long an idle engine is believed."""


class Health:
    """Of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._probing: asyncio.Task[None] | None = None
        self._ids = itertools.count()

    async def live(self) -> Response:
        """This process answers."""
        return Response(status_code=200)

    async def ready(self) -> Response:
        """The engine takes requests, and has run a step within a minute, or within ten seconds if it is busy."""
        self._check_state()
        if time.monotonic() - self._service.client.last_step > PROBE_S:
            await self._probe()
        return Response(status_code=200)

    async def probe(self) -> Response:
        """The engine has run a step within ten seconds; an idle one runs one now."""
        self._check_state()
        if time.monotonic() - self._service.client.last_step > FRESH_S or self._service.client.view is None:
            await self._probe()
        return Response(status_code=200)

    def _check_state(self) -> None:
        client = self._service.client
        if client.state is not State.READY:
            raise ApiError(503, "engine_unavailable", client.why)
        if client.silence > FRESH_S:
            raise ApiError(503, "engine_stuck", f"the engine has run no step for {client.silence:.0f} s")

    async def _probe(self) -> None:
        """One token. Several askers share it. Raises ApiError if none comes in time."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._one_token())
        try:
            await asyncio.wait_for(asyncio.shield(self._probing), FRESH_S)
        except asyncio.TimeoutError:
            raise ApiError(503, "engine_stuck", f"the engine gave no token within {FRESH_S:g} s") from None

    async def _one_token(self) -> None:
        client = self._service.client
        request = Request(
            id=f"health/{next(self._ids)}",
            prompt=(0,),
            params=SamplingParams(max_tokens=1, temperature=0),
            arrival=time.monotonic(),
            priority=-(1 << 30),
        )
        async for _ in client.deltas(client.submit([request], again=False)):
            pass
