"""Load for a server: requests that arrive as they please, or as soon as others have ended, and what clients see of it.

    open loop     arrivals from a Poisson or Gamma process at a rate; the server's slowness does not slow them
    closed loop   so many clients, each asks again when it has its answer

TTFT is from sending to the first piece; an inter-token latency is the gap between two pieces of a stream, shared by the
tokens of the later piece. Goodput: requests per second whose TTFT and mean inter-token latency meet the objective.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from headrace.meter import percentile

SHARES = (0.5, 0.95, 0.99)
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house"
).split()


@dataclass(frozen=True)
class Ask:
    """One request of a load."""

    prompt: str | tuple[int, ...]
    """A text, or token ids."""
    max_tokens: int
    at: float
    """Seconds after the start, in an open loop."""


@dataclass
class Seen:
    """What a client saw."""

    sent: float
    """Seconds after the start."""
    pieces: list[tuple[float, int]] = field(default_factory=list)
    """When a piece came, and how many tokens there were by then."""
    ended: float = 0.0
    error: str = ""
    prompt_tokens: int = 0

    def settle(self, tokens: int) -> None:
        """The server says at the end how many tokens there were: a last piece that only says why it ends is none, and
        pieces of several tokens share them."""
        count = len(self.pieces)
        if count > tokens > 0 and self.pieces[-1][1] > tokens:
            del self.pieces[tokens:]
        elif count and self.pieces[-1][1] < tokens:
            self.pieces = [(at, tokens * (i + 1) // count) for i, (at, _) in enumerate(self.pieces)]

    @property
    def ttft(self) -> float:
        return self.pieces[0][0] - self.sent

    @property
    def timed_gaps(self) -> list[tuple[float, float]]:
        """(when it came, seconds since the one before), one per token after the first piece."""
        found = []
        for (before, had), (at, has) in zip(self.pieces, self.pieces[1:], strict=False):
            found += [(at, (at - before) / (has - had))] * (has - had)
        return found

    @property
    def gaps(self) -> list[float]:
        """The seconds alone."""
        return [gap for _, gap in self.timed_gaps]


@dataclass(frozen=True)
class Shape:
    """What requests look like."""

    count: int
    length: tuple[int, int]
    """Fewest and most words of a prompt, the shared ones included; tokens, if `vocab` is given."""
    shared: int
    """How many of these all prompts start with."""
    max_tokens: int
    rate: float | None = None
    """Requests per second of an open loop; None is a closed one."""
    burstiness: float = 1.0
    """Shape of the Gamma process: 1 is Poisson, below it requests come in bursts."""
    vocab: int | None = None
    """Prompts are random token ids below this instead of words."""


def make(shape: Shape, seed: int) -> list[Ask]:
    """The requests, the same for the same seed."""
    draw = random.Random(seed)
    shared = _prompt(shape, shape.shared, draw)
    asks, at = [], 0.0
    for _ in range(shape.count):
        own = max(draw.randint(*shape.length) - shape.shared, 1)
        prompt = (*shared, *_prompt(shape, own, draw))
        asks.append(Ask(" ".join(map(str, prompt)) if shape.vocab is None else prompt, shape.max_tokens, at))
        if shape.rate is not None:
            at += draw.gammavariate(shape.burstiness, 1 / (shape.rate * shape.burstiness))
    return asks


def _prompt(shape: Shape, length: int, draw: random.Random) -> list[Any]:
    return draw.choices(_WORDS if shape.vocab is None else range(shape.vocab), k=length)


async def run(
    url: str, asks: Sequence[Ask], *, clients: int | None, key: str, timeout: float, done: Callable[[], None]
) -> list[Seen]:
    """Asks all of them; `clients` at a time, or each at its own time (None). `done` is called after each."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=1024)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        gate = asyncio.Semaphore(clients or len(asks))
        begin = time.perf_counter()

        async def one(ask: Ask) -> Seen:
            if clients is None:
                await asyncio.sleep(max(begin + ask.at - time.perf_counter(), 0))
            async with gate:
                seen = await _ask(client, model, ask, begin)
            done()
            return seen

        return list(await asyncio.gather(*map(one, asks)))


async def _ask(client: httpx2.AsyncClient, model: str, ask: Ask, begin: float) -> Seen:
    body = {
        "model": model,
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    seen = Seen(time.perf_counter() - begin)
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                seen.error = f"status {answer.status_code}"
            else:
                async for line in answer.aiter_lines():
                    read(seen, line, time.perf_counter() - begin)
    except httpx2.HTTPError as error:
        seen.error = type(error).__name__
    seen.ended = time.perf_counter() - begin
    return seen


def read(seen: Seen, line: str, at: float) -> None:
    """Takes one line of a stream that came `at` seconds after the start."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        seen.error = str(event["error"].get("code") or "error")
        return
    usage = event.get("usage") or {}
    seen.prompt_tokens = usage.get("prompt_tokens", seen.prompt_tokens)
    if event.get("choices"):  # one token per piece, unless the server tells
        had = seen.pieces[-1][1] if seen.pieces else 0
        has = usage.get("completion_tokens", had + 1)
        if has > had:
            seen.pieces.append((at, has))
    elif "completion_tokens" in usage:
        seen.settle(usage["completion_tokens"])


def summarise(seen: Sequence[Seen], *, ttft_s: float, itl_s: float) -> dict[str, Any]:
    """One row: rates, latencies in seconds, and goodput under the objective."""
    good = [one for one in seen if not one.error and one.pieces]
    took = max((one.ended for one in seen), default=0.0)
    row: dict[str, Any] = {
        "requests": len(seen),
        "failed": len(seen) - len(good),
        "seconds": took,
        "requests_per_s": len(good) / took,
        "prompt_tok_s": sum(one.prompt_tokens for one in good) / took,
        "output_tok_s": sum(one.pieces[-1][1] for one in good) / took,
        "objective_ttft_s": ttft_s,
        "objective_itl_s": itl_s,
    }
    if good:
        met = [one for one in good if one.ttft <= ttft_s and _mean(one.gaps) <= itl_s]
        row["goodput_per_s"] = len(met) / took
        row |= _spread("ttft", [one.ttft for one in good])
        row |= _spread("itl", [gap for one in good for gap in one.gaps])
        row |= _spread("request", [one.ended - one.sent for one in good])
    return row


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = {f"{name}_p{share * 100:.0f}_s": percentile(values, share) for share in SHARES}
    return {**found, f"{name}_max_s": max(values)}
