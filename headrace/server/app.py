"""Routes. Each parses its body, hands it on, and writes the answer; everything else is elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from headrace import __version__
from headrace.errors import HeadraceError
from headrace.server import errors, text
from headrace.server.adapters import AdapterRoutes, LoadRequest, UnloadRequest, cards
from headrace.server.chats import Chat
from headrace.server.completions import Completion
from headrace.server.embeddings import EmbeddingRequest, Embeddings
from headrace.server.errors import ApiError
from headrace.server.health import Health
from headrace.server.live import PATHS, Live, page
from headrace.server.openapi import describe
from headrace.server.passes import Passes
from headrace.server.rankings import Ranking, RerankRequest
from headrace.server.record import CANCELLED
from headrace.server.schema import (
    Body,
    ChatRequest,
    Common,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    is_id,
    parse,
)
from headrace.server.scores import ScoreRequest, Scores
from headrace.server.service import Service
from headrace.server.stream import EventStream, disconnected, events

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
PASSES: tuple[tuple[type[Common], Any, str, tuple[str, ...]], ...] = (
    (EmbeddingRequest, Embeddings.start, "embd", ("/v1/embeddings",)),
    (ScoreRequest, Scores.start, "score", ("/v1/score", "/score")),
    (RerankRequest, Ranking.start, "rerank", ("/v1/rerank", "/rerank", "/v2/rerank")),
)
"""Body, what starts it, prefix of its id, paths."""


class Api:
    """The endpoints of one service."""

    def __init__(
        self, service: Service, live: Live, *, strict: bool = False, lora_root: Path | None = None
    ) -> None:
        """strict: a field that is not known is an error. lora_root: adapters in it may be added and removed."""
        self.service, self.live, self.strict = service, live, strict
        self.health = Health(service)
        self.adapters = AdapterRoutes(service, lora_root, strict=strict) if lora_root else None
        self._serials = itertools.count()
        self._bodies: dict[str, type] = {}

    def app(self) -> FastAPI:
        """The ASGI application."""
        app = FastAPI(title="headrace", version=__version__, docs_url=None, redoc_url=None)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(Exception, _error)
        app.add_exception_handler(HeadraceError, _error)
        self._post(app, "/v1/completions", self.completions, CompletionRequest)
        self._post(app, "/v1/chat/completions", self.chats, ChatRequest)
        for kind, start, name, paths in PASSES:
            for path in paths:
                self._post(app, path, self._passing(kind, start, name), kind)
        self._post(app, "/tokenize", self.tokenize, TokenizeRequest)
        self._post(app, "/detokenize", self.detokenize, DetokenizeRequest)
        if self.adapters is not None:
            self._post(app, "/v1/load_lora_adapter", self.adapters.load, LoadRequest)
            self._post(app, "/v1/unload_lora_adapter", self.adapters.unload, UnloadRequest)
        for path, route in (
            ("/tokenizer_info", self.tokenizer_info),
            ("/v1/models", self.models),
            ("/v1/models/{name:path}", self.model),
            ("/health", self.health.probe),
            ("/health/live", self.health.live),
            ("/health/ready", self.health.ready),
            ("/ping", self.health.live),
            ("/metrics", self.metrics),
            ("/version", self.version),
            ("/live", self.steps),
        ):
            app.add_api_route(path, route, methods=["GET"], response_model=None)
        for path in PATHS:
            app.add_api_route(path, page, methods=["GET"], response_model=None)
        describe(app, self._bodies)
        return app

    # ---- generation ----

    async def completions(self, request: Request) -> Response:
        """Continues prompts."""
        body, ignored = self._parse(CompletionRequest, await self._body(request))
        id = _call_id(request, body.request_id, "cmpl")
        made = await self._counted(Completion.start(self.service, body, id))
        return await self._answer(request, made, bool(body.stream), ignored)

    async def chats(self, request: Request) -> Response:
        """Answers a conversation."""
        body, ignored = self._parse(ChatRequest, await self._body(request))
        id = _call_id(request, body.request_id, "chatcmpl")
        made = await self._counted(Chat.start(self.service, body, id))
        return await self._answer(request, made, bool(body.stream), ignored)

    async def _answer(
        self, request: Request, made: Completion | Chat, stream: bool, ignored: list[str]
    ) -> Response:
        request.state.record.call = made.call
        headers = _told([*ignored, *made.ignored])
        if stream:
            return EventStream(events(made.stream(), request.state.request_id), headers, made.call.abandon)
        return _json(await _unless_gone(request, made.answer()), headers)

    async def _body(self, request: Request) -> bytes:
        try:
            return await request.body()
        except ClientDisconnect:
            self.service.metrics.end("cancelled")
            raise ApiError(CANCELLED, "cancelled", "the client is gone") from None
        except ApiError:
            self.service.metrics.reject()
            raise

    def _passing(self, kind: type[Common], start: Any, name: str) -> Callable[..., Any]:
        """An endpoint whose answer needs forward passes and generates nothing."""

        async def route(request: Request) -> Response:
            body, ignored = self._parse(kind, await self._body(request))
            id, serial = _call_id(request, body.request_id, name), next(self._serials)
            passes, made = await self._counted(self._started(start, id, serial, body))
            request.state.record.call = passes
            return _json(await _unless_gone(request, passes.counted(made.answer())), _told(ignored))

        return route

    async def _started(self, start: Any, id: str, serial: int, body: Common) -> tuple[Passes, Any]:
        passes = Passes(self.service, id, serial, body)
        return passes, await start(passes, body)

    def _parse(self, kind: type[Body], data: bytes) -> tuple[Body, list[str]]:
        try:
            body, ignored = parse(kind, data, strict=self.strict)
            self.service.check_model(getattr(body, "model", None))
        except ApiError:
            self.service.metrics.reject()
            raise
        return body, ignored

    async def _counted(self, starting: Awaitable[Answer]) -> Answer:
        """A request that ends before the engine has it is counted here."""
        try:
            return await starting
        except Exception:
            self.service.metrics.reject()
            raise

    # ---- text ----

    async def tokenize(self, request: Request) -> Response:
        """Text to token ids."""
        body, _ = self._parse(TokenizeRequest, await self._body(request))
        return _json(await text.tokenize(self.service, body))

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text."""
        body, _ = self._parse(DetokenizeRequest, await self._body(request))
        return _json(text.detokenize(self.service, body))

    async def tokenizer_info(self) -> Response:
        """Special tokens and template."""
        return _json(text.tokenizer_info(self.service))

    # ---- about ----

    async def models(self) -> Response:
        """What is served."""
        base = self._model()
        return _json({"object": "list", "data": [base, *cards(self.service, base)]})

    async def model(self, name: str) -> Response:
        """One model."""
        adapter = self.service.check_model(name)
        found = [card for card in cards(self.service, self._model()) if card["id"] == adapter]
        return _json(found[0] if found else self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.service.name,
            "object": "model",
            "created": self.service.started,
            "owned_by": "headrace",
            "max_model_len": self.service.context,
            "default_sampling": dict(self.service.defaults),
        }

    async def metrics(self) -> Response:
        """Prometheus."""
        text = self.service.metrics.text(self.service.client)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def steps(self) -> Response:
        """The engine after its last steps, for the page."""
        return self.live.answer(self.service.client)

    async def version(self) -> Response:
        return _json({"version": __version__})

    def _post(self, app: FastAPI, path: str, route: Callable[..., Any], kind: type) -> None:
        self._bodies[path] = kind
        app.add_api_route(path, route, methods=["POST"], response_model=None)


def _told(ignored: list[str]) -> dict[str, str]:
    """The header that names what was ignored: a name that is not plain text could be anything."""
    names = ", ".join(name if is_id(name) else "?" for name in ignored)[:1024]
    return {"X-Ignored-Params": names} if ignored else {}


def _call_id(request: Request, asked: str | None, kind: str) -> str:
    """OpenAI's form of an id, from the request's own."""
    return f"{kind}-{(asked or request.state.request_id).removeprefix('req-')}"


async def _unless_gone(request: Request, answer: Awaitable[Answer]) -> Answer:
    """The answer; cancelled when the client hangs up."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CANCELLED, "cancelled", "the client is gone")
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
            with contextlib.suppress(BaseException):
                await future


def _json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def _error(request: Request, error: Exception) -> Response:
    told, id = errors.of(error), request.state.request_id
    if told.status == 500:
        _log.error("request %s failed", id, exc_info=error)
    return _json(told.body(id), told.headers, told.status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, what = {
        404: ("not_found", "no such path"),
        405: ("method_not_allowed", "this path does not know the method"),
    }.get(error.status_code, ("invalid_request", error.detail))
    where = f"{request.method} {request.url.path[:200]}"
    return await _error(request, ApiError(error.status_code, code, f"{what}: {where}"))
