"""/v1/embeddings, /v1/score and /v1/rerank: the Python API's numbers, in the shapes of others, and their limits."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import random
import signal
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

from headrace import LLM
from headrace.server.passes import MAX_INPUTS, SLICE
from headrace.server.rankings import LISTWISE, POINTWISE, slide, windows
from tests.server.running import Server, metric, serving
from tests.server.test_life import gauge, until
from tests.server.test_refusals import error_of

TEXTS = ["def read_lines(path):\n", "class Queue:\n", "The quick brown fox. " * 12]
PROMPT, CHOICES = "def add(x, y):\n    return", [" x + y", " y", "\n\n\n", " x"]
DOCUMENTS = [
    "def sort(xs):\n    return sorted(xs)",
    "import os",
    "print(1)",
    "class Queue: pass",
    "x = [3, 1]",
]
QUERY = "sort a list"


@pytest.fixture
def ask(server: Server) -> Iterator[Any]:
    with server.client() as client:

        def post(path: str, **body: Any) -> dict[str, Any]:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield post


# ---- embeddings ----


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_those_of_the_python_api(ask: Any, llm: LLM, pooling: Any) -> None:
    want = llm.embed(TEXTS, pooling=pooling)
    ids = [llm.tokenizer.encode(text) for text in TEXTS]
    for given in (TEXTS, ids):
        got = ask("/v1/embeddings", model="tiny-draft", input=given, pooling=pooling)
        assert [item["index"] for item in got["data"]] == [0, 1, 2] and got["object"] == "list"
        for item, vector in zip(got["data"], want, strict=True):
            assert item["object"] == "embedding" and item["embedding"] == pytest.approx(vector, abs=1e-5)
            assert math.fsum(x * x for x in item["embedding"]) == pytest.approx(1, abs=1e-5)
        count = sum(map(len, ids))
        assert got["usage"] == {"prompt_tokens": count, "total_tokens": count}
    for given in (TEXTS[1], ids[1]):
        [item] = ask("/v1/embeddings", input=given, pooling=pooling)["data"]
        assert item["embedding"] == pytest.approx(want[1], abs=1e-5)


def test_the_last_tokens_by_default_and_unscaled_if_asked(ask: Any, llm: LLM) -> None:
    [want] = llm.embed(TEXTS[0], pooling="last", normalize=False)
    [item] = ask("/v1/embeddings", input=TEXTS[0], normalize=False)["data"]
    assert item["embedding"] == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_base64_holds_the_same_numbers(ask: Any) -> None:
    plain = ask("/v1/embeddings", input=TEXTS, encoding_format="float")["data"]
    coded = ask("/v1/embeddings", input=TEXTS, encoding_format="base64")["data"]
    for one, other in zip(plain, coded, strict=True):
        data = base64.b64decode(other["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == one["embedding"]


def test_more_inputs_than_run_at_once(ask: Any) -> None:
    inputs = [[i % 4000, i // 4000, 7] for i in range(2 * SLICE + 3)]
    data = ask("/v1/embeddings", input=inputs, pooling="mean")["data"]
    assert [item["index"] for item in data] == list(range(len(inputs)))
    for place in (0, SLICE, 2 * SLICE + 2):
        [one] = ask("/v1/embeddings", input=inputs[place], pooling="mean")["data"]
        assert data[place]["embedding"] == pytest.approx(one["embedding"], abs=1e-5)


def test_the_openai_client_embeds(server: Server, llm: LLM) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    want = llm.embed(TEXTS)
    for options in ({}, {"encoding_format": "float"}, {"dimensions": 128}):  # it asks for base64 by itself
        answer = client.embeddings.create(model="tiny-draft", input=TEXTS, **options)
        assert [list(item.embedding) for item in answer.data] == [pytest.approx(v, abs=1e-5) for v in want]
    assert answer.usage.prompt_tokens == sum(len(llm.tokenizer.encode(text)) for text in TEXTS)
    with pytest.raises(openai.BadRequestError, match="not trained so that fewer"):
        client.embeddings.create(model="tiny-draft", input="a", dimensions=64)


def test_an_input_may_fill_the_context(ask: Any) -> None:
    assert ask("/v1/embeddings", input=[5] * 2048)["usage"]["prompt_tokens"] == 2048


# ---- scores ----


def test_scores_are_those_of_echo_and_of_the_python_api(ask: Any, llm: LLM) -> None:
    got = ask("/v1/score", prompt=PROMPT, choices=CHOICES)
    size = len(llm.tokenizer.encode(PROMPT))
    for item, choice, want in zip(got["choices"], CHOICES, llm.score(PROMPT, CHOICES), strict=True):
        echo = ask("/v1/completions", prompt=PROMPT + choice, echo=True, logprobs=0, max_tokens=0)
        values = echo["choices"][0]["logprobs"]["token_logprobs"][size:]
        assert item["token_logprobs"] == pytest.approx(values, abs=1e-4)
        assert item["logprob"] == pytest.approx(want.logprob, abs=1e-4)
        assert item["mean_logprob"] == pytest.approx(want.mean, abs=1e-4)
        assert item["num_tokens"] == len(values) and tuple(item["token_ids"]) == want.token_ids
    total = sum(size + item["num_tokens"] for item in got["choices"])
    assert got["usage"] == {"prompt_tokens": total, "total_tokens": total}
    ids = llm.tokenizer.encode(PROMPT)
    same = ask("/v1/score", prompt=ids, choices=[item["token_ids"] for item in got["choices"]])
    assert [item["logprob"] for item in same["choices"]] == pytest.approx(
        [item["logprob"] for item in got["choices"]], abs=1e-4
    )


def test_scores_in_vllms_shape(ask: Any, llm: LLM) -> None:
    want = [score.logprob for score in llm.score(PROMPT, CHOICES)]
    for first in (PROMPT, [PROMPT], [PROMPT] * 4):
        got = ask("/v1/score", model="tiny-draft", text_1=first, text_2=CHOICES)
        assert [item["index"] for item in got["data"]] == [0, 1, 2, 3] and got["object"] == "list"
        assert [item["score"] for item in got["data"]] == pytest.approx(want, abs=1e-4)
    pairs = ask("/score", text_1=["a", PROMPT], text_2=[" b", CHOICES[1]])["data"]
    assert pairs[1]["score"] == pytest.approx(want[1], abs=1e-4)


@pytest.mark.parametrize("item_first", [False, True])
def test_scores_in_sglangs_shape(ask: Any, llm: LLM, item_first: bool) -> None:
    labels, items = [870, 703, 5], [" x", " y"]
    encode = llm.tokenizer.encode
    texts = [item + PROMPT if item_first else PROMPT + item for item in items]
    want = [[math.exp(s.logprob) for s in llm.score(encode(t), [[label] for label in labels])] for t in texts]
    body = {"query": PROMPT, "items": items, "label_token_ids": labels, "item_first": item_first}
    got = ask("/v1/score", **body)
    assert got["object"] == "scoring" and got["model"] == "tiny-draft"
    assert got["scores"] == [pytest.approx(row, rel=1e-3) for row in want]
    soft = ask("/v1/score", **body, apply_softmax=True)["scores"]
    assert soft == [pytest.approx([p / sum(row) for p in row], rel=1e-3) for row in want]
    ids = {"query": encode(PROMPT), "items": [[7, 8]], "label_token_ids": labels}
    assert len(ask("/v1/score", **ids)["scores"][0]) == 3
    assert ask("/v1/score", **{**body, "items": " x"})["scores"][0] == pytest.approx(want[0], rel=1e-3)


def test_completions_report_tokens_by_id(ask: Any, llm: LLM) -> None:
    want = llm.score(PROMPT, [[870], [703]])
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "return_tokens_as_token_ids": True}
    answer = ask("/v1/completions", **body, logprobs=1, logprob_token_ids=[870, 703])
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    for score in want:
        assert top[f"token_id:{score.token_ids[0]}"] == pytest.approx(score.logprob, abs=1e-4)


# ---- rankings ----


def by_hand(llm: LLM, texts: Sequence[str]) -> list[float]:
    """Log-probability of each document's letter where the model would write the first of its ranking."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(texts)]
    shown = "\n\n".join(f"[{letter}] {text}" for letter, text in zip(letters, texts, strict=True))
    message = {"role": "user", "content": LISTWISE.format(query=QUERY, documents=shown)}
    _, ids = llm.template.encode(llm.tokenizer, [message])
    ids += llm.tokenizer.encode("[", add_special=False)
    return [score.logprob for score in llm.score(ids, [[llm.tokenizer.id_of(letter)] for letter in letters])]


def test_a_ranking_is_that_of_the_first_token(ask: Any, llm: LLM, server: Server) -> None:
    with server.client() as client:
        ask("/v1/embeddings", input="a")  # counters exist from the first step on
        before = gauge(client, "headrace_steps_total")
        got = ask("/v1/rerank", query=QUERY, documents=DOCUMENTS)
        assert gauge(client, "headrace_steps_total") == before + 1, "one forward pass, nothing is generated"
    values = by_hand(llm, DOCUMENTS)
    total = math.fsum(map(math.exp, values))
    order = sorted(range(5), key=lambda place: -values[place])
    assert [item["index"] for item in got["results"]] == order
    for item in got["results"]:
        assert item["document"] == {"text": DOCUMENTS[item["index"]]}
        assert item["relevance_score"] == pytest.approx(math.exp(values[item["index"]]) / total, rel=1e-3)
    given: list[Any] = [{"text": text} for text in DOCUMENTS]
    top = ask("/rerank", query=QUERY, documents=given, top_n=2, return_documents=False)["results"]
    assert [item["index"] for item in top] == order[:2] and "document" not in top[0]


def test_windows_slide_over_many_documents(ask: Any, llm: LLM) -> None:
    documents = [f"def f{i}(x): return {i * 37 % 11}" for i in range(9)]

    async def rank(places: Sequence[int]) -> list[float]:
        return by_hand(llm, [documents[place] for place in places])

    order, scores = asyncio.run(slide(9, 4, 2, rank))
    got = ask("/v1/rerank", query=QUERY, documents=documents, window=4, stride=2)["results"]
    assert [item["index"] for item in got] == order
    assert [item["relevance_score"] for item in got] == pytest.approx(scores, rel=1e-2)


def test_a_window_that_does_not_fit_is_made_smaller(ask: Any, server: Server) -> None:
    documents = [f"document {i}: " + "word " * (150 + 7 * i) for i in range(12)]
    got = ask("/v1/rerank", query=QUERY, documents=documents)
    assert sorted(item["index"] for item in got["results"]) == list(range(12))
    assert got["usage"]["prompt_tokens"] > 2048, "more than one pass"


def test_the_best_of_every_window_is_ranked_again() -> None:
    """A model that sorts by a hidden number: the top `stride` are found whatever their places."""
    rng = random.Random(0)
    for count, size, stride in [
        (1, 20, 10),
        (20, 20, 10),
        (21, 20, 10),
        (100, 20, 10),
        (53, 7, 3),
        (9, 2, 1),
    ]:
        keys = [rng.random() * 9 for _ in range(count)]
        passes: list[Sequence[int]] = []

        async def rank(places: Sequence[int], keys: list[float] = keys, seen: Any = passes) -> list[float]:
            seen.append(places)
            return [keys[place] for place in places]

        order, scores = asyncio.run(slide(count, size, stride, rank))
        best = sorted(range(count), key=lambda place: -keys[place])
        assert sorted(order) == list(range(count)) and order[:stride] == best[:stride]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
        assert len(passes) == 1 + math.ceil(max(0, count - size) / stride)
        if count <= size:
            weights = [math.exp(keys[place]) for place in order]
            assert scores == pytest.approx([weight / sum(weights) for weight in weights])


def test_windows_are_those_of_the_paper() -> None:
    assert list(windows(30, 20, 10)) == [(10, 30), (0, 20)]
    assert list(windows(25, 20, 10)) == [(5, 25), (0, 15)]
    assert list(windows(7, 20, 10)) == [(0, 7)]


def test_pointwise_asks_of_each_document(ask: Any, llm: LLM) -> None:
    got = ask("/v1/rerank", query=QUERY, documents=DOCUMENTS[:3], method="pointwise")["results"]
    words = [[llm.tokenizer.id_of("yes")], [llm.tokenizer.id_of("no")]]
    for item in got:
        message = POINTWISE.format(query=QUERY, document=DOCUMENTS[item["index"]])
        _, ids = llm.template.encode(llm.tokenizer, [{"role": "user", "content": message}])
        yes, no = (math.exp(score.logprob) for score in llm.score(ids, words))
        assert item["relevance_score"] == pytest.approx(yes / (yes + no), rel=1e-3)
    assert [i["relevance_score"] for i in got] == sorted((i["relevance_score"] for i in got), reverse=True)


# ---- limits ----

LONG = "word " * 4000
REFUSED = [
    ("/v1/embeddings", {}, "input", "required"),
    ("/v1/embeddings", {"input": ""}, "input", "empty"),
    ("/v1/embeddings", {"input": []}, "input", "input must be"),
    ("/v1/embeddings", {"input": [[]]}, "input", "empty"),
    ("/v1/embeddings", {"input": ["a", 1]}, "input", "input must be"),
    ("/v1/embeddings", {"input": ["a"] * (MAX_INPUTS + 1)}, "input", "at most 2048"),
    ("/v1/embeddings", {"input": [10**6]}, None, "vocabulary"),
    ("/v1/embeddings", {"input": [-1]}, None, "vocabulary"),
    ("/v1/embeddings", {"input": [5] * 2049}, "input", "2049 tokens, and at most 2048 fit"),
    ("/v1/embeddings", {"input": ["a", [5] * 3]}, "input", "input must be"),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions", "have 128"),
    ("/v1/embeddings", {"input": "a", "dimensions": 64}, "dimensions", "matryoshka"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "Invalid enum"),
    ("/v1/embeddings", {"input": "a", "pooling": "max"}, "pooling", "Invalid enum"),
    ("/v1/embeddings", {"input": "a", "cache_salt": ""}, "cache_salt", "1 to 1024"),
    ("/v1/embeddings", {"input": "a", "priority": 10**6}, "priority", "between"),
    ("/v1/score", {}, None, "give prompt and choices"),
    ("/v1/score", {"prompt": "a"}, None, "give prompt and choices"),
    ("/v1/score", {"prompt": "a", "choices": ["b"], "text_1": "a"}, None, "give prompt and choices"),
    ("/v1/score", {"prompt": "a", "choices": []}, "choices", "1 to 2048"),
    ("/v1/score", {"prompt": "a", "choices": ["b", ""]}, "choices", "empty"),
    ("/v1/score", {"prompt": "", "choices": ["b"]}, "choices", "empty"),
    ("/v1/score", {"prompt": "a", "choices": ["b"], "apply_softmax": True}, "apply_softmax", "goes with"),
    ("/v1/score", {"prompt": [5] * 2046, "choices": [[5, 5]]}, None, "2048 tokens, and at most 2047"),
    ("/v1/score", {"prompt": [5] * 2047, "choices": [[5]]}, "prompt", "2047 tokens, and at most 2046"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1", "2 texts"),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": []}, "label_token_ids", "1 to 128"),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1] * 129}, "label_token_ids", "1 to"),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [4096]}, "label_token_ids", "vocab"),
    ("/v1/score", {"query": "a", "items": ["b", [1]], "label_token_ids": [1]}, "items", "all be texts"),
    ("/v1/rerank", {"query": "", "documents": ["a"]}, "query", "empty"),
    ("/v1/rerank", {"query": "a", "documents": []}, "documents", "1 to 2048"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n", "at least 0"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "window": 27}, "window", "between 2 and 26"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "stride": 20}, "stride", "below the window"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "method": "magic"}, "method", "Invalid enum"),
    ("/v1/rerank", {"query": "a", "documents": [LONG, "b", "c"]}, "documents", "at most 2047 fit"),
    ("/v1/rerank", {"query": LONG, "documents": ["b"], "method": "pointwise"}, None, "at most 2047 fit"),
    ("/v1/completions", {"prompt": "a", "logprob_token_ids": [1]}, "logprob_token_ids", "go with logprobs"),
    ("/v1/completions", {"prompt": "a", "logprobs": 0, "logprob_token_ids": [4096]}, None, "vocabulary"),
]


@pytest.mark.parametrize("path,body,param,text", REFUSED, ids=lambda value: json.dumps(value)[:40])
def test_refused(server: Server, path: str, body: dict[str, Any], param: str | None, text: str) -> None:
    with server.client() as client:
        before = gauge(client, "headrace_requests_ended_total", outcome="rejected")
        answer = client.post(path, json=body)
        assert answer.status_code == 400, answer.text
        error = error_of(answer)
        assert text in error["message"] and (param is None or error["param"] == param), error
        assert gauge(client, "headrace_requests_ended_total", outcome="rejected") == before + 1


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/score", "/v1/rerank"])
def test_bad_json_and_other_models(server: Server, path: str) -> None:
    with server.client() as client:
        for data in (b"", b"{", b"[]", b'{"input": NaN}', b"[" * 100_000):
            answer = client.post(path, content=data, headers={"content-type": "application/json"})
            assert answer.status_code == 400
            error_of(answer)
        body = {"input": "a", "prompt": "a", "choices": ["b"], "query": "q", "documents": ["d"], "model": "x"}
        assert client.post(path, json=body).status_code == 404


def test_answered_requests_are_counted_once(ask: Any, server: Server) -> None:
    with server.client() as client:
        before = metric(client.get("/metrics").text, "headrace_requests_ended_total", outcome="completed")
        ask("/v1/embeddings", input=[[7]] * (SLICE + 1))
        ask("/v1/rerank", query="q", documents=["a", "b", "c"], window=2, stride=1)
        ask("/v1/score", prompt="a", choices=["b"], request_id="mine")
        after = metric(client.get("/metrics").text, "headrace_requests_ended_total", outcome="completed")
    assert after - before == 3


def test_a_client_that_leaves_cancels(server: Server) -> None:
    with server.client() as client:
        before = gauge(client, "headrace_requests_ended_total", outcome="cancelled")
        with httpx2.Client(base_url=server.url, timeout=0.5) as leaving, pytest.raises(httpx2.ReadTimeout):
            leaving.post("/v1/embeddings", json={"input": [[i % 4000] * 1200 for i in range(700)]})
        until(
            lambda: gauge(client, "headrace_requests_ended_total", outcome="cancelled") == before + 1,
            "the request is counted as cancelled",
        )
        until(lambda: gauge(client, "headrace_kv_usage_ratio") == 0, "the pages are free")


def test_a_full_queue_is_429() -> None:
    flags = ("--model", "tiny-draft", "--threads", "1", "--max-seqs", "1", "--max-waiting", "1")
    long = {"prompt": "def f():\n", "max_tokens": 1900, "ignore_eos": True, "n": 2, "temperature": 1}
    asked: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": [f"text {i}" for i in range(5)]},
        "/v1/score": {"prompt": "a", "choices": ["b", "c", "d"]},
        "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
    }
    with serving(*flags) as server, server.client() as client:
        for path, body in asked.items():
            assert client.post(path, json=body).status_code == 200, (
                "more than the queue holds come bit by bit"
            )
        with client.stream("POST", "/v1/completions", json={**long, "stream": True}) as stream:
            lines = stream.iter_lines()  # kept: without it, the client hangs up
            next(lines)
            os.kill(server.engine(), signal.SIGSTOP)  # however slow this is, both samples are still under way
            try:
                for path, body in asked.items():
                    answer = client.post(path, json=body)
                    assert answer.status_code == 429, (path, answer.text)
                    assert answer.json()["error"]["code"] == "queue_full"
            finally:
                os.kill(server.engine(), signal.SIGCONT)
        until(lambda: client.post("/v1/embeddings", json={"input": "a"}).status_code == 200, "there is room")
