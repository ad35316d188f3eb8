"""Adapters over HTTP: chosen by a request's model, listed, loaded and unloaded, and harmless when they are broken."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from headrace import LLM, EngineConfig, box
from headrace.commands.flags import with_adapters
from headrace.commands.run import run
from headrace.errors import ConfigError
from headrace.forward.load import describe
from headrace.server.run import Options, serve
from tests.server.running import Server, metric, serving
from tests.server.test_life import until
from tests.server.test_refusals import error_of
from tests.weight import lora_folders

PROMPTS = ["def add(a, b):\n", "import os\n", "class Queue:\n    def"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters, good and bad, and one beside it that nobody may reach."""
    folder = tmp_path_factory.mktemp("adapters")
    architecture = describe(box.path("tiny-draft")).architecture
    inside = folder / "root"
    for name, rank, seed in (("one", 4, 1), ("two", 16, 2), ("three", 8, 3), ("four", 8, 4)):
        lora_folders.write(inside / name, architecture, rank, seed, strength=0.5)
    lora_folders.write(folder / "outside", architecture, 4, 5)
    (inside / "link").symlink_to(folder / "outside")
    (inside / "leak").mkdir()
    for file in (folder / "outside").iterdir():
        (inside / "leak" / file.name).symlink_to(file)
    shutil.copytree(inside / "one", inside / "torn")
    with (inside / "torn" / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(5000)
    shutil.copytree(inside / "one", inside / "dora")
    settings = inside / "dora" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "use_dora": True}))
    (inside / "empty").mkdir()
    (inside / "file").write_text("no folder")
    return inside


@pytest.fixture(scope="module")
def adapted(root: Path) -> Iterator[Server]:
    flags = ("--lora", f"one={root / 'one'}", "--lora", f"two={root / 'two'}", "--lora-root", str(root))
    with serving("--model", "tiny-draft", "--threads", "1", *flags) as running:
        yield running


@pytest.fixture(scope="module")
def local(root: Path) -> Iterator[LLM]:
    """The same in this process."""
    named = {name: str(root / name) for name in ("one", "two", "three", "four")}
    with LLM("tiny-draft", threads=1, adapters=named) as llm:
        yield llm


def complete(server: Server, model: str | None, prompt: str = PROMPTS[0]) -> httpx2.Response:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with server.client() as client:
        return client.post("/v1/completions", json=body | ({"model": model} if model else {}))


def text(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def load(server: Server, name: str, path: str, how: str = "load") -> httpx2.Response:
    body = {"lora_name": name} | ({"lora_path": path} if how == "load" else {})
    with server.client() as client:
        return client.post(f"/v1/{how}_lora_adapter", json=body)


def want(llm: LLM, prompt: str, adapter: str) -> str:
    params = llm.sampling(max_tokens=12, temperature=0, ignore_eos=True)
    [output] = llm.generate(prompt, params, adapter=adapter)
    return str(output.text)


def test_each_request_gets_its_own_adapter(adapted: Server, local: LLM) -> None:
    asked = [(prompt, name) for prompt in PROMPTS for name in ("", "one", "two")] * 2
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda pair: text(complete(adapted, pair[1] or None, pair[0])), asked))
    expected = [want(local, *pair) for pair in asked]
    assert answers == expected
    assert len(set(expected[:3])) == 3, "the adapters change nothing"


def test_names(adapted: Server, local: LLM) -> None:
    for model, adapter in (("tiny-draft", ""), ("one", "one"), ("tiny-draft:one", "one")):
        answer = complete(adapted, model)
        assert text(answer) == want(local, PROMPTS[0], adapter) and answer.json()["model"] == model
    for model in ("three", "tiny-draft:three", "tiny-draft:", ":one", "one:one", "other:one", "../one"):
        answer = complete(adapted, model)
        assert answer.status_code == 404 and error_of(answer)["code"] == "model_not_found", model
    with adapted.client() as client:
        listed = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert listed["one"]["parent"] == listed["two"]["parent"] == "tiny-draft"
        assert "parent" not in listed["tiny-draft"]
        assert client.get("/v1/models/one").json() == listed["one"]
        chat = {"model": "two", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=chat).json()["model"] == "two"


def test_loading_and_unloading(adapted: Server, local: LLM, root: Path) -> None:
    for path in ("three", str(root / "three"), f"{root}/three/"):
        assert complete(adapted, "mine").status_code == 404
        answer = load(adapted, "mine", path)
        assert answer.status_code == 200 and "mine" in answer.text
        assert text(complete(adapted, "mine")) == want(local, PROMPTS[0], "three")
        again = load(adapted, "mine", path)
        assert again.status_code == 400 and "unload it first" in error_of(again)["message"]
        assert load(adapted, "mine", "", "unload").status_code == 200
    answer = load(adapted, "mine", "", "unload")
    assert answer.status_code == 404 and error_of(answer)["code"] == "model_not_found"
    assert complete(adapted, "mine").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["absent", "link", "leak", "file", "../outside", "..", ".", "", "one/../one", "/etc", "a" * 129, "one\x00", "~"],
)  # fmt: skip
def test_nothing_outside_the_root_and_no_word_of_what_is_there(adapted: Server, path: str) -> None:
    answer = load(adapted, "x", path)
    assert answer.status_code == 400
    message = error_of(answer)["message"]
    assert message == "lora_path must name a folder in the server's folder of adapters that holds one"


def test_broken_adapters_are_told_in_a_line_and_streams_go_on(adapted: Server, root: Path) -> None:
    body = {"prompt": PROMPTS[0], "max_tokens": 400, "ignore_eos": True, "stream": True, "temperature": 0}
    with adapted.client() as client, client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        for path, match in (("torn", "truncated"), ("dora", "use_dora"), ("empty", "no file adapter_")):
            answer = load(adapted, "broken", path)
            error = error_of(answer)
            assert answer.status_code == 400 and match in error["message"] and error["param"] == "lora_path"
            assert str(root) not in error["message"] and "\n" not in error["message"]
        for name in ("", "a/b", "..\\", "tiny-draft", "x" * 129):
            answer = load(adapted, name, "three")
            assert answer.status_code == 400 and error_of(answer)["param"] == "lora_name"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert complete(adapted, None).status_code == 200


def test_an_adapter_that_is_broken_later_fails_its_requests_alone(adapted: Server, root: Path) -> None:
    assert load(adapted, "late", "four").status_code == 200
    file = root / "four" / "adapter_model.safetensors"
    data = file.read_bytes()
    for wrong in (data[:3000], b""):
        file.write_bytes(wrong)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda model: complete(adapted, model), ["late", "one", None, "late"]))
        assert [answer.status_code for answer in answers] == [400, 200, 200, 400]
        assert "adapter_model.safetensors" in error_of(answers[0])["message"]
    file.write_bytes(data)
    assert complete(adapted, "late").status_code == 200
    assert load(adapted, "late", "", "unload").status_code == 200


def test_metrics(adapted: Server) -> None:
    body = {"model": "two", "prompt": PROMPTS[0], "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with adapted.client() as client, client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
        labels = {"running_lora_adapters": "two", "waiting_lora_adapters": "", "max_lora": "64"}
        with adapted.client() as other:
            found = other.get("/metrics").text
            assert metric(found, "vllm:lora_requests_info", **labels) > 1e9


def test_the_next_engine_serves_the_same_adapters(adapted: Server, local: LLM, root: Path) -> None:
    assert load(adapted, "kept", "three").status_code == 200
    assert load(adapted, "lost", "four").status_code == 200
    aside = root.parent / "aside"
    (root / "four").rename(aside)
    engine = adapted.engine()
    os.kill(engine, signal.SIGKILL)

    def back() -> bool:
        try:
            return adapted.engine() != engine and complete(adapted, None).status_code == 200
        except (StopIteration, OSError):
            return False

    until(back, "a new engine", 60)
    for name, adapter in (("one", "one"), ("kept", "three")):
        assert text(complete(adapted, name)) == want(local, PROMPTS[0], adapter)
    assert complete(adapted, "lost").status_code == 404
    aside.rename(root / "four")


def test_there_are_no_routes_without_a_root(server: Server) -> None:
    for how in ("load", "unload"):
        assert load(server, "x", "y", how).status_code == 404


def test_bad_flags_end_it_in_a_line(root: Path) -> None:
    command = [sys.executable, "-m", "headrace", "serve", "--model", "tiny-draft", "--port", "0"]
    torn = ["--lora", f"x={root / 'torn'}"]
    done = subprocess.run([*command, *torn], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "truncated" in done.stderr, done.stderr
    config = EngineConfig(model="tiny-draft")
    for text in ("x", "=x", "x="):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            with_adapters(config, [text])
    with pytest.raises(ConfigError, match="already"):
        with_adapters(config, ["x=a", "x=b"])
    assert with_adapters(config, ["x=a=b"], "2MiB") == EngineConfig(
        model="tiny-draft", adapters={"x": "a=b"}, adapter_bytes=2 << 20
    )
    for wrong, options, match in (
        (with_adapters(config, ["tiny-draft=a"]), Options(port=0), "as the model is"),
        (config, Options(port=0, lora_root=str(root / "nowhere")), "not a folder"),
    ):
        with pytest.raises(ConfigError, match=match):
            asyncio.run(serve(wrong, options, lambda line: None))
    with pytest.raises(ConfigError, match="--adapter NAME"):
        run(config, {}, "prompt", lora=["x=a"])


def test_in_python(local: LLM) -> None:
    params = local.sampling(max_tokens=12, temperature=0, ignore_eos=True)
    outputs = local.generate([PROMPTS[0]] * 3, params, adapter=["", "one", "two"])
    assert [output.text for output in outputs] == [want(local, PROMPTS[0], a) for a in ("", "one", "two")]
    streamed = "".join(chunk.text for chunk in local.stream(PROMPTS[0], params, adapter="one"))
    assert streamed == outputs[1].text
    for wrong, match in ((["one"], "3 prompts but 1 adapters"), ("nobody", "no adapter called 'nobody'")):
        with pytest.raises(ConfigError, match=match):
            local.generate([PROMPTS[0]] * 3, params, adapter=wrong)


def test_on_the_command_line(local: LLM, root: Path) -> None:
    flags = ["--lora", f"x={root / 'one'}", "--adapter", "x", "--model", "tiny-draft", "-q", "--threads", "1"]
    more = ["--max-tokens", "12", "--temperature", "0", "--ignore-eos", "--json"]
    command = [sys.executable, "-m", "headrace", "run", PROMPTS[0], *flags, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout)["text"] == want(local, PROMPTS[0], "one"), done.stderr


def test_embeddings_and_scores_have_adapters_too(adapted: Server, local: LLM) -> None:
    with adapted.client() as client:
        for model, adapter in (("tiny-draft", ""), ("two", "two")):
            answer = client.post("/v1/embeddings", json={"model": model, "input": PROMPTS[0]}).json()
            [want_vector] = local.embed(PROMPTS[0], adapter=adapter)
            assert answer["model"] == model
            assert answer["data"][0]["embedding"] == pytest.approx(want_vector, abs=1e-6)
            body = {"model": model, "prompt": PROMPTS[0], "choices": [" return", " pass"]}
            scored = client.post("/v1/score", json=body).json()["choices"]
            expected = [
                sum(score.logprobs) for score in local.score(PROMPTS[0], body["choices"], adapter=adapter)
            ]
            assert [choice["logprob"] for choice in scored] == pytest.approx(expected, abs=1e-6)
    base, two = local.embed(PROMPTS[0]), local.embed(PROMPTS[0], adapter="two")
    assert base != two
