"""Full load for HEADRACE_SOAK_MINUTES (30): every answer is the one computed alone, and nothing grows."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.server.running import Server, serving
from tests.server.traffic import grown, ledger, prompts, resources, rss, settled

MINUTES = float(os.environ.get("HEADRACE_SOAK_MINUTES", "30"))
WARM_S = min(300.0, MINUTES * 60 / 3)
"""What the processes need by then, they may keep."""
MOST_GROWTH = 20 << 20
CLIENTS = 12
FORM = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """What is asked, over and over: all parameters that change how an answer is computed."""
    found: list[tuple[str, dict[str, Any]]] = []
    for i, prompt in enumerate(prompts(10)):
        plain = {"prompt": prompt, "max_tokens": 8 + 13 * i, "temperature": 0}
        found += [
            ("/v1/completions", plain),
            ("/v1/completions", {**plain, "temperature": 0.9, "seed": i, "top_p": 0.9, "logprobs": 2}),
        ]
    long = "".join(prompts(40))[:2500]
    chat = [{"role": "user", "content": "Sort 3 1 2."}]
    found += [
        ("/v1/completions", {"prompt": long, "max_tokens": 20, "temperature": 0, "ignore_eos": True}),
        (
            "/v1/completions",
            {"prompt": long + "# and more\n", "max_tokens": 20, "temperature": 0, "logprobs": 5},
        ),
        ("/v1/completions", {"prompt": "a = ", "max_tokens": 40, "n": 4, "temperature": 1.0, "seed": 7}),
        (
            "/v1/completions",
            {"prompt": ["x", "import ", "def "], "max_tokens": 30, "temperature": 0, "stop": ["\n"]},
        ),
        ("/v1/completions", {"prompt": "import os\n", "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": "{", "max_tokens": 60, "temperature": 0, "guided_json": FORM}),
        (
            "/v1/completions",
            {"prompt": "b", "max_tokens": 30, "temperature": 0, "guided_regex": "[a-f]{3}-[0-9]{2,9}"},
        ),
        (
            "/v1/completions",
            {"prompt": "c", "max_tokens": 50, "temperature": 0, "repetition_penalty": 1.3, "min_tokens": 9},
        ),
        ("/v1/chat/completions", {"messages": chat, "max_tokens": 40, "temperature": 0}),
        (
            "/v1/chat/completions",
            {"messages": chat * 3, "max_tokens": 40, "temperature": 0.7, "seed": 3, "n": 2},
        ),
    ]
    return found


def answer_of(value: dict[str, Any]) -> list[tuple[int, Any, Any]]:
    """What must always be the same: text and log-probabilities of each choice, and why it ended."""
    return [
        (c["index"], c["text"] if "text" in c else c["message"]["content"], c["finish_reason"])
        for c in value["choices"]
    ]


class Load:
    """Clients that ask, compare and ask again; one in ten gives up on the way."""

    def __init__(self, server: Server, asked: list[tuple[str, dict[str, Any]]], want: list[Any]) -> None:
        self.server, self.asked, self.want = server, asked, want
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.end = threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(i,)) for i in range(CLIENTS)]

    def _client(self, number: int) -> None:
        chosen = random.Random(number)
        with self.server.client() as client:
            while not self.end.is_set() and not self.wrong:
                which = chosen.randrange(len(self.asked))
                try:
                    self.outcomes[self._ask(client, chosen, which)] += 1
                except (httpx2.HTTPError, KeyError, ValueError, AssertionError) as error:
                    self.wrong.append(f"{self.asked[which]}: {error!r}")

    def _ask(self, client: httpx2.Client, chosen: random.Random, which: int) -> str:
        path, body = self.asked[which]
        if chosen.random() < 0.1:
            with client.stream("POST", path, json={**body, "stream": True}) as answer:
                lines = answer.iter_lines()
                for _ in range(chosen.randrange(8)):
                    next(lines, None)
            return "left"
        if chosen.random() < 0.4:
            return self._follow(client, which)
        found = answer_of(client.post(path, json=body).json())
        assert found == self.want[which], f"{found} is not {self.want[which]}"
        return "whole"

    def _follow(self, client: httpx2.Client, which: int) -> str:
        """As a stream: the pieces are put together."""
        path, body = self.asked[which]
        texts: dict[int, str] = {}
        reasons: dict[int, Any] = {}
        done = False
        with client.stream("POST", path, json={**body, "stream": True}) as answer:
            for line in filter(lambda line: line.startswith("data: "), answer.iter_lines()):
                assert not done
                if line == "data: [DONE]":
                    done = True
                    continue
                [choice] = httpx2.Response(200, text=line.removeprefix("data: ")).json()["choices"]
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
                reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
        found = [(i, texts[i], reasons[i]) for i in sorted(texts)]
        assert done and found == self.want[which], f"{found} is not {self.want[which]}"
        return "streamed"


@pytest.mark.slow
def test_soak() -> None:
    with serving("--model", "tiny-draft", "--threads", "1", "--max-seqs", "8") as server:
        asked = bodies()
        with server.client() as client:
            want = [answer_of(client.post(path, json=body).json()) for path, body in asked]
        before, counted = resources(server), ledger(server)
        processes = (server.process.pid, server.engine())
        load = Load(server, asked, want)
        begin = time.monotonic()
        for thread in load.threads:
            thread.start()
        warm: list[int] = []
        seen: list[tuple[int, ...]] = []
        try:
            while time.monotonic() - begin < MINUTES * 60 and not load.wrong:
                assert server.engine() == processes[1], server.log.read_text()[-2000:]
                load.end.wait(min(5.0, MINUTES * 6))
                seen.append((int(time.monotonic() - begin), *(rss(process) >> 10 for process in processes)))
                if not warm and time.monotonic() - begin > WARM_S:
                    warm = [rss(process) for process in processes]
        finally:
            load.end.set()
            for thread in load.threads:
                thread.join(120)
        assert not load.wrong, (load.wrong[:3], server.log.read_text()[-2000:])
        settled(server, before)
        growth = [rss(process) - old for process, old in zip(processes, warm, strict=True)]
        story = f"{load.outcomes}, (s, KiB of API, KiB of engine): {seen[:: max(len(seen) // 12, 1)]}"
        assert max(growth) < MOST_GROWTH, f"grew by {growth} bytes; {story}"
        ended = grown(counted, ledger(server))
        assert sum(ended.values()) == load.outcomes.total() and set(ended) == {"completed", "cancelled"}, (
            story
        )
        assert processes[1] == server.engine() and b"Traceback" not in server.log.read_bytes()
        sys.stderr.write(f"{story}; grew by {growth} bytes\n")
