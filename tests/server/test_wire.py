"""Messages between the two processes survive the socket, however they are cut; what is none ends it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headrace.params import SamplingParams
from headrace.server.messages import (
    Cancel,
    Failed,
    Ready,
    Refused,
    SpanView,
    Start,
    Stepped,
    Submit,
    View,
)
from headrace.server.wire import MAX_BYTES, ApiEnd, Closed, EngineEnd, frame
from headrace.stats import Counters, Stats
from headrace.types import Delta, Logprob, Pooling, Request

PARAMS = SamplingParams(n=2, logit_bias={5: -1.5}, stop=("a", "bé"), stop_token_ids=(3,), seed=-7, logprobs=2)
TO_ENGINE = [
    Start({"model": "tiny", "stack": {"weights": "int4"}, "threads": None}),
    Submit(Request(id="a/1", prompt=(1, 2, 3), params=PARAMS, arrival=1.5, priority=-2, salt="s")),
    Submit(Request(id="e", prompt=(1,), params=SamplingParams(), pooling=Pooling(kind="mean", dimensions=3))),
    Cancel("a/1"),
    Cancel("a/1", 1),
]
LOGPROBS = (Logprob(7, -0.5, ((7, -0.5), (8, float("-inf")))),)
VIEW = View(0.25, Stats(1, 2, 0, 10, 4, 2, Counters(steps=3)), (SpanView(1, 0, 5, 0, True),))
TO_API = [
    Ready(2048, 100, 16, (3,), "llguidance", {"temperature": 0.5}, "/x", "facts"),
    Failed("no", True),
    Refused("a/1", "why"),
    Stepped(
        (
            Delta("a/1", 0, 4, (7,), LOGPROBS, LOGPROBS, "stop"),
            Delta("a/1", 1, 5, (8, 9), embedding=b"\x00\xff"),
        ),
        ("a/1",),
        VIEW,
    ),
]


def test_to_the_engine_in_single_bytes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end = EngineEnd(theirs)
        got = []
        for byte in b"".join(map(frame, TO_ENGINE)):
            ours.send(bytes([byte]))
            got += end.receive(wait=False)
        assert got == TO_ENGINE
        assert dict(got[1].request.params.logit_bias) == {5: -1.5}
        ours.sendall(b"".join(map(frame, TO_ENGINE)))
        assert end.receive(wait=True) == TO_ENGINE
        ours.close()
        with pytest.raises(Closed):
            end.receive(wait=True)
        with pytest.raises(Closed):
            for _ in range(1000):
                end.send(TO_API[0])


def test_to_the_api() -> None:
    async def read() -> list[object]:
        ours, theirs = socket.socketpair()
        end = await ApiEnd.open(ours)
        with theirs:
            for message in TO_API:
                EngineEnd(theirs).send(message)
        got = [await end.receive() for _ in TO_API]
        with pytest.raises(Closed):
            await end.receive()
        end.close()
        return got

    assert asyncio.run(read()) == TO_API


@pytest.mark.parametrize(
    "data",
    [
        (MAX_BYTES + 1).to_bytes(4, "little"),
        (3).to_bytes(4, "little") + b"\xc1ab",
        (1).to_bytes(4, "little") + b"\x90",
        frame(TO_API[0]),
    ],
    ids=["too long", "not msgpack", "not a message", "of the other direction"],
)
def test_what_is_no_message_ends_it(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        with pytest.raises(Closed):
            EngineEnd(theirs).receive(wait=True)


def test_parameters_are_checked_on_the_way_in() -> None:
    """Whoever writes to the socket cannot pass what SamplingParams refuses."""
    import msgspec

    good = msgspec.msgpack.decode(frame(TO_ENGINE[1])[4:])
    good["request"]["params"]["temperature"] = -1.0
    data = msgspec.msgpack.encode(good)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(len(data).to_bytes(4, "little") + data)
        with pytest.raises(Closed, match="temperature"):
            EngineEnd(theirs).receive(wait=True)
