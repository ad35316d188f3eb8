"""Serves OpenVINO GenAI's ContinuousBatchingPipeline over HTTP: as much of OpenAI's API as the load generator asks.

OpenVINO GenAI has no server of its own for Python. This one does next to nothing beside the pipeline (prompts are token
ids, no text is made of the answers), so what it measures is what a real server could reach at best.

    python -m benchmarks.peers.runners.openvino_server --model DIR --port N --threads N --seqs N --tokens N
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy
import openvino
import openvino_genai as genai

CACHE_GB = 2  # at 8 bits per key and value, five times what sixteen requests of a thousand tokens need
TURNS = 16
"""Of the event loop between two steps: a new connection takes three or four until its request is here."""
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass(eq=False)
class Job:
    """One request. `news`: how many tokens came, each time some did."""

    prompt: list[int]
    max_tokens: int
    news: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    done: int = 0
    handle: Any = None


class Pipeline:
    """The pipeline, stepped by the event loop itself: a step keeps Python's lock, so that no other thread could run
    beside it. Between two steps connections have their turn."""

    def __init__(self, given: argparse.Namespace) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = given.seqs
        scheduler.max_num_batched_tokens = given.tokens
        properties = {"INFERENCE_NUM_THREADS": given.threads}
        self._pipeline = genai.ContinuousBatchingPipeline(given.model, scheduler, "CPU", properties)
        self._ids = itertools.count()
        self._inbox: asyncio.Queue[Job] = asyncio.Queue()

    def submit(self, job: Job) -> None:
        self._inbox.put_nowait(job)

    async def run(self) -> None:
        """For ever."""
        live: list[Job] = []
        while True:
            while not live or not self._inbox.empty():
                live.append(self._begin(await self._inbox.get()))
            self._pipeline.step()
            for job in live:
                while job.handle.can_read():
                    count = sum(len(output.generated_ids) for output in job.handle.read().values())
                    job.done += count
                    job.news.put_nowait(count)
            live = [job for job in live if job.done < job.max_tokens]
            for _ in range(TURNS):
                await asyncio.sleep(0)

    def _begin(self, job: Job) -> Job:
        config = genai.GenerationConfig(max_new_tokens=job.max_tokens, ignore_eos=True, do_sample=False)
        ids = openvino.Tensor(numpy.array([job.prompt], dtype=numpy.int64))
        job.handle = self._pipeline.add_request(next(self._ids), ids, config)
        return job


class Http:
    """One request per connection."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.lower().split("\r\n")
            size = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
            body = await reader.readexactly(size)
            if head.startswith("POST /v1/completions "):
                await self._complete(json.loads(body), writer)
            else:
                _answer(writer, {"data": [{"id": "model"}]})
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        job = Job(body["prompt"], body["max_tokens"])
        self._pipeline.submit(job)
        writer.write(_STREAM)
        had = 0
        while had < job.max_tokens:
            had += await job.news.get()
            _event(writer, {"choices": [{"index": 0, "text": ""}], "usage": _usage(job, had)})
            await writer.drain()
        _event(writer, {"choices": [], "usage": _usage(job, had)})
        writer.write(b"data: [DONE]\n\n")


def _usage(job: Job, had: int) -> dict[str, int]:
    return {"prompt_tokens": len(job.prompt), "completion_tokens": had}


def _event(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(b"data: " + json.dumps(value).encode() + b"\n\n")


def _answer(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close"
    writer.write(head.encode() + b"\r\n\r\n" + data)


async def run(given: argparse.Namespace) -> None:
    """Until the process is ended."""
    pipeline = Pipeline(given)
    async with await asyncio.start_server(Http(pipeline).serve, "127.0.0.1", given.port):
        await pipeline.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    for name, what in (("port", ""), ("threads", ""), ("seqs", "requests at once"), ("tokens", "per step")):
        parser.add_argument(f"--{name}", type=int, required=True, help=what)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
