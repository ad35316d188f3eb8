"""How the passes of one request go to the engine: slice by slice, one ahead where that pays, counted once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.config import EngineConfig
from headrace.server.client import Job
from headrace.server.errors import ApiError
from headrace.server.metrics import Metrics
from headrace.server.passes import LEAD_TOKENS, SLICE, Passes
from headrace.server.record import Record
from headrace.server.schema import Common
from headrace.server.service import Service
from headrace.server.traces import attributes
from headrace.types import Delta, Pooling, Request


class Client:
    """Ends every job at once, the last first, with its prompt's last token as its vector."""

    def __init__(self, **config: Any) -> None:
        self.config = EngineConfig(**config)
        self.slices: list[int] = []

    def submit(self, requests: Sequence[Request]) -> list[Job]:
        self.slices.append(len(requests))
        return [Job(request, asyncio.Queue(), {0}) for request in requests]

    async def deltas(self, jobs: Sequence[Job]) -> AsyncIterator[Delta]:
        for job in reversed(jobs):
            last = bytes([job.request.prompt[-1]])
            yield Delta(job.request.id, 0, 1, (), finish_reason="stop", cached=1, embedding=last)


def passes(client: Client) -> Passes:
    service = SimpleNamespace(
        client=client,
        name="m",
        metrics=Metrics("m"),
        context=2048,
        vocab=4096,
        check_model=lambda asked: "",
    )
    service.request = functools.partial(Service.request, cast(Any, service))
    return Passes(cast(Any, service), "embd-1", 7, Common())


async def ran(made: Passes, prompts: Sequence[Sequence[int]], lead: bool = False) -> list[bytes]:
    made.start([made.request(prompt, pooling=Pooling()) for prompt in prompts], lead=lead)
    return [result.embedding for result in await made.counted(made.results())]


@pytest.mark.parametrize(
    ("config", "count", "slices"),
    [
        ({}, 3, [3]),
        ({}, SLICE, [SLICE]),
        ({}, 2 * SLICE + 3, [SLICE, SLICE, 3]),
        ({"max_seqs": 4, "max_waiting": 6}, 12, [5, 5, 2]),
        ({"max_seqs": 1, "max_waiting": 1}, 2, [1, 1]),
    ],
)
def test_slices_leave_room_for_others(config: dict[str, int], count: int, slices: list[int]) -> None:
    client = Client(**config)
    found = asyncio.run(ran(passes(client), [[1, i] for i in range(count)]))
    assert client.slices == slices and found == [bytes([i]) for i in range(count)], "in order"


def test_one_goes_ahead_where_the_others_find_its_beginning() -> None:
    shared = [3] * LEAD_TOKENS
    alike = [[*shared, i] for i in range(5)]
    for prompts, config, lead, slices in (
        (alike, {}, True, [1, 4]),
        (alike, {}, False, [5]),
        (alike, {"prefix_cache": False}, True, [5]),
        ([prompt[1:] for prompt in alike], {}, True, [5]),  # too short to be worth a step
        ([*alike, [4, *shared]], {}, True, [6]),
        (alike[:1], {}, True, [1]),
    ):
        client = Client(**config)
        asyncio.run(ran(passes(client), prompts, lead))
        assert client.slices == slices


def test_what_the_log_and_the_span_say() -> None:
    made = passes(Client())
    record = Record("r", "POST", "/v1/embeddings", status=200, call=made)
    assert record.outcome == "completed"
    asyncio.run(ran(made, [[5] * 40, [6] * 43]))
    fields, found = record.fields(), attributes(record)
    assert (fields["prompt_tokens"], fields["cached_tokens"], fields["completion_tokens"]) == (83, 2, 0)
    assert fields["response_id"] == "embd-1" and "83 + 0 tokens" in record.text()
    assert found["gen_ai.usage.num_sequences"] == 2 and found["gen_ai.usage.prompt_tokens"] == 83
    assert "gen_ai.request.temperature" not in found, "there was none"


def test_how_it_ended_is_counted_once() -> None:
    async def fail(made: Passes) -> None:
        made.start([made.request([1], pooling=Pooling())])
        raise ValueError

    async def hang(made: Passes) -> None:
        made.start([made.request([1], pooling=Pooling())])
        await asyncio.get_running_loop().create_future()

    async def cancelled(made: Passes) -> None:
        task = asyncio.ensure_future(made.counted(hang(made)))
        await asyncio.sleep(0)
        task.cancel()
        await task

    made = passes(Client())
    with pytest.raises(ValueError):
        asyncio.run(made.counted(fail(made)))
    assert made.watch.outcome == "failed"
    made = passes(Client())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled(made))
    assert made.watch.outcome == "cancelled"


def test_a_long_query_is_not_encoded_without_end() -> None:
    """A prompt of many choices is encoded with each: bodies of 4 MiB could ask for terabytes."""
    made = passes(Client())
    for _ in range(8):
        made.spend(1 << 20)
    with pytest.raises(ApiError, match="more than 8388608 characters"):
        made.spend(1)
