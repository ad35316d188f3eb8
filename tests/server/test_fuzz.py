"""Ten thousand bodies that are nearly right: no 500, nothing of the inside in an answer, nothing grows."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server import mutate
from tests.server.running import Server
from tests.server.traffic import completion, exchange, idle, ledger, resources, rss, settled, until

INSIDE = re.compile(rb"Traceback|site-packages|0x[0-9a-f]{6}|\.py\b|/work|/tmp|/usr|headrace/|object at")
ASKED = {"prompt": "import os\n", "max_tokens": 30, "temperature": 0}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
MOST_GROWTH = 64 << 20
"""Bytes: pools and caches that fill once."""


def check(sent: bytes, status: int, answer: bytes, kind: str) -> None:
    about = f"{sent[:400]!r} -> {status} {answer[:400]!r}"
    assert status in (200, 400, 404, 413, 429), about
    found = INSIDE.search(answer)
    assert found is None or found[0] in sent or status == 200, about
    if status != 200:
        error = json.loads(answer)["error"]
        assert (
            set(error) == {"message", "type", "param", "code", "request_id"} and len(error["message"]) < 1200
        ), about
    elif kind.startswith("text/event-stream"):
        assert answer.endswith(b"data: [DONE]\n\n") and b'"internal_error"' not in answer, about
    else:
        json.loads(answer)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bodies(server: Server, count: int) -> None:
    chosen = random.Random(count)
    want = completion(server, ASKED)
    until(lambda: idle(server), "it is idle")
    cases = [mutate.body(chosen) for _ in range(count)]
    before, memory, counted = None, (0, 0), ledger(server)
    with server.client() as client, ThreadPoolExecutor(4) as threads:

        def send(case: tuple[str, bytes]) -> int:
            path, data = case
            answer = client.post(path, content=data, headers={"content-type": "application/json"})
            check(data, answer.status_code, answer.content, answer.headers.get("content-type", ""))
            return answer.status_code

        statuses = list(threads.map(send, cases[: count // 4]))
        client.get("/health")
        before, memory = resources(server), (rss(server.process.pid), rss(server.engine()))
        statuses += threads.map(send, cases[count // 4 :])
        assert completion(server, ASKED) == want
        settled(server, before)
    assert statuses.count(200) > count // 20 and statuses.count(400) > count // 3, (
        "mutations that miss the point"
    )
    grown = [
        rss(process) - old for process, old in zip((server.process.pid, server.engine()), memory, strict=True)
    ]
    assert max(grown) < MOST_GROWTH, grown
    made = [case for case in cases if "tokenize" not in case[0]]
    ended = sum(ledger(server).values()) - sum(counted.values())
    assert len(made) < ended <= count + 1, "every request has one end"
    assert b"Traceback" not in server.log.read_bytes()


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.slow)])
def test_requests(server: Server, count: int) -> None:
    chosen = random.Random(count)
    before = resources(server)
    cases = [mutate.request(chosen) for _ in range(count)]
    with ThreadPoolExecutor(8) as threads:
        for sent, answer in zip(cases, threads.map(lambda data: exchange(server, data), cases), strict=True):
            found = re.match(rb"HTTP/1\.1 (\d+)", answer)
            about = f"{sent[:300]!r} -> {answer[:300]!r}"
            assert found is None or int(found[1]) in (100, 200, 400, 403, 404, 405, 413, 431), about
            assert INSIDE.search(answer.partition(b"\r\n\r\n")[2]) is None or int(found[1]) == 200, about
    settled(server, before)
    assert b"Traceback" not in server.log.read_bytes()


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    """Every reference leads to something, and every body has a schema."""
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "([^"]*)"', text)):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"200", "400", "503"} <= set(operation["responses"]), path
            assert ("requestBody" in operation) == (method == "post"), path


@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_what_the_document_allows_and_what_it_does_not(
    server: Server, document: dict[str, Any], examples: int
) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="pip install 'headrace[fuzz]'")
    import hypothesis

    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    wanted = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in modes:

            @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=True,
                                 suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def run(case: Any) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
                    case.body["max_tokens"] = min(case.body["max_tokens"], 8)
                case.call_and_validate(checks=wanted)

            try:
                run()
            except hypothesis.errors.Unsatisfiable:  # nothing about it can be wrong
                assert mode is modes[1]
    until(lambda: idle(server), "nothing is left")
    assert b"Traceback" not in server.log.read_bytes()
