"""What the API process and the engine process say to each other.

    API -> engine   Start, then Submit, Cancel, Pause and Resume, LoadAdapter and UnloadAdapter
    engine -> API   Ready or Failed; then Stepped after every step, Refused for a request that cannot be, AdapterTold

Every message is a msgspec Struct: typed, checked when it is read, and never code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

import msgspec

from headrace.stats import Counters, Stats
from headrace.types import Delta, Request

EXIT_ENGINE = 70
"""Exit code of a process whose engine failed: EX_SOFTWARE."""


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first message. `config`: fields of EngineConfig."""

    config: dict[str, Any]


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Run this."""

    request: Request


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody wants this any more: the request, or one of its samples. Unknown ones are ignored."""

    id: str
    index: int | None = None


class Pause(msgspec.Struct, tag=True, frozen=True):
    """Whoever wants this does not take what is there: make no more of it."""

    id: str


class Resume(msgspec.Struct, tag=True, frozen=True):
    """It was taken: go on."""

    id: str


class LoadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Know this folder by this name; answered by AdapterTold."""

    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Forget the name. Unknown ones are ignored."""

    name: str


class AdapterTold(msgspec.Struct, tag=True, frozen=True):
    """The answer to LoadAdapter."""

    name: str
    error: str = ""
    """Why it cannot be served; empty if it can."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The engine takes requests. What the API has to know about it."""

    context: int
    vocab: int
    width: int
    """Numbers of a hidden state, and so of an embedding."""
    eos: tuple[int, ...]
    grammar: str
    """Spec of the slot `grammar`."""
    defaults: dict[str, Any]
    """Sampling parameters of the model's own generation_config.json."""
    path: str
    """The model's folder: its tokenizer and template are there."""
    facts: str
    """Model, arithmetic and stack in one line."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine did not start. The process ends after this."""

    message: str
    user: bool
    """Whether the configuration is at fault."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot run this request."""

    id: str
    message: str


class SpanView(msgspec.Struct, frozen=True, array_like=True):
    """One span of a step, for whoever watches."""

    seq: int
    start: int
    stop: int
    draft: int
    sampled: bool
    """Whether it reached the end of the sequence: a decode, or the last chunk of a prompt."""


class View(msgspec.Struct, frozen=True):
    """The engine after a step."""

    seconds: float
    """What the step took."""
    stats: Stats
    spans: tuple[SpanView, ...] = ()


class Since:
    """What the engine's counters have grown by; a new engine's begin at 0."""

    def __init__(self) -> None:
        self._before = Counters()

    def __call__(self, counters: Counters) -> Counters:
        """Since the last call."""
        before = self._before if counters.steps >= self._before.steps else Counters()
        self._before = counters
        return Counters(*(now - old for now, old in zip(astuple(counters), astuple(before), strict=True)))


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """One step."""

    deltas: tuple[Delta, ...]
    admitted: tuple[str, ...]
    """Requests that ran for the first time: from now on they have started."""
    view: View


ToEngine = Start | Submit | Cancel | Pause | Resume | LoadAdapter | UnloadAdapter
FromEngine = Ready | Failed | Refused | Stepped | AdapterTold


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message."""
    return _encoder.encode(message)


def _plain(value: object) -> object:
    """What msgspec does not know by itself."""
    if isinstance(value, MappingProxyType | Mapping):
        return dict(value)
    raise NotImplementedError(f"{type(value)} does not cross the socket")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
to_engine = msgspec.msgpack.Decoder(ToEngine)
"""Reads what the API says."""
from_engine = msgspec.msgpack.Decoder(FromEngine)
"""Reads what the engine says."""
