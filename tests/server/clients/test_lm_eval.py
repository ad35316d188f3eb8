"""lm-eval's local-completions scores a model behind the server as the Python API does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM
from headrace.box import path
from tests.server.clients.clients import client
from tests.server.running import Server

TASKS = Path(__file__).parent / "tasks"
ROOT = TASKS.parents[3]
MOST = 2047
"""Tokens that lm-eval sends at once to a context of 2048: one is for the answer."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is fetched, and nothing stays in the user's caches."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(ROOT)  # where the tasks say that their files are
    yield


def evaluate(server: Server, task: str, **args: Any) -> list[dict[str, Any]]:
    """What lm-eval asked for each item of a task, and what it made of the answers."""
    evaluator, tasks = client("lm_eval.evaluator"), client("lm_eval.tasks")
    common = {"model": "tiny-draft", "base_url": f"{server.url}/v1/completions", "max_retries": 1}
    results = evaluator.simple_evaluate(
        model="local-completions",
        model_args={**common, **args},
        tasks=[task],
        task_manager=tasks.TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
    )
    found: list[dict[str, Any]] = results["samples"][task]
    return sorted(found, key=lambda sample: sample["doc_id"])


HUGGING_FACE = {"tokenizer": str(path("tiny-draft")), "tokenizer_backend": "huggingface"}
each_way = pytest.mark.parametrize(
    "args",
    [
        {**HUGGING_FACE, "batch_size": 8, "num_concurrent": 4},
        {"tokenizer_backend": "remote", "batch_size": 8, "num_concurrent": 1},
        {"tokenizer_backend": "auto", "batch_size": 1, "num_concurrent": 4},
    ],
    ids=["huggingface", "remote", "auto"],
)


def score(llm: LLM, prompts: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    """(log-likelihood of the last `count` tokens, whether each of them is the likeliest) by the Python API."""
    params = llm.sampling(temperature=0, max_tokens=1, prompt_logprobs=1)
    outputs = llm.generate([ids[-MOST:] for ids, _ in prompts], params)
    scores = []
    for output, (_, count) in zip(outputs, prompts, strict=True):
        items = output.prompt_logprobs[len(output.prompt_logprobs) - count :]
        scores.append((sum(item.logprob for item in items), all(i.logprob == i.top[0][1] for i in items)))
    return scores


def pair(llm: LLM, context: str, continuation: str) -> tuple[list[int], int]:
    """Tokens of both, and how many are the continuation's, which takes the spaces before it along."""
    bare = context.rstrip()
    before, both = (
        llm.tokenizer.encode(text, add_special=False, parse_special=False)
        for text in (bare, context + continuation)
    )
    return both, len(both) - len(before)


@each_way
def test_choices(server: Server, llm: LLM, args: dict[str, Any]) -> None:
    samples = evaluate(server, "box_choices", **args)
    pairs = [pair(llm, *asked) for sample in samples for asked in sample["arguments"]]
    want = score(llm, pairs)
    got = [answer for sample in samples for [answer] in sample["resps"]]
    assert len(got) == len(want) == 66 and max(len(ids) for ids, _ in pairs) > MOST
    assert [value for value, _ in got] == pytest.approx([value for value, _ in want], abs=1e-4, rel=0)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert {greedy for _, greedy in want} == {True, False}


@each_way
def test_whole_texts(server: Server, llm: LLM, args: dict[str, Any]) -> None:
    """Also one that is longer than the context, in windows."""
    harness = client("lm_eval.utils")
    samples = evaluate(server, "box_texts", **args)
    assert len(samples) == 4
    longest = 0
    for sample in samples:
        [[text]] = sample["arguments"]
        ids = llm.tokenizer.encode(text, add_special=False, parse_special=False)
        windows = harness.get_rolling_token_windows(
            token_list=ids, prefix_token=llm.tokenizer.eos, max_seq_len=MOST - 1, context_len=1
        )
        parts = [(before + new, len(new)) for before, new in map(harness.make_disjoint_window, windows)]
        longest = max(longest, len(parts))
        want = sum(value for value, _ in score(llm, parts))
        assert sample["resps"] == [[pytest.approx(want, abs=1e-4, rel=0)]]
    assert longest > 1


@each_way
def test_answers(server: Server, llm: LLM, args: dict[str, Any]) -> None:
    samples = evaluate(server, "box_answers", **args)
    prompts = [llm.tokenizer.encode(sample["arguments"][0][0], add_special=False) for sample in samples]
    stop = ("\n", "<|endoftext|>")
    want = llm.generate(prompts, llm.sampling(temperature=0, max_tokens=6, stop=stop))
    assert [sample["resps"][0][0] for sample in samples] == [output.text for output in want]
    assert any(output.text.strip() for output in want)


def test_a_context_that_is_taken_for_longer_is_told(server: Server) -> None:
    """The message has both numbers, and lm-eval shows it."""
    requests = client("requests")
    with pytest.raises(requests.HTTPError) as error:
        evaluate(server, "box_choices", **HUGGING_FACE, batch_size=8, max_length=4096)
    told = error.value.response.json()["error"]
    assert told["code"] == "context_length_exceeded" and "2048" in told["message"]
